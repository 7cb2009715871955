"""What a run must remember besides weights, moments and data order."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from distmoe.training.selection import BestScore
from distmoe.training.structural.state import StructureState


@dataclass
class TrainerState:
    """Progress of a run; plain numbers, equal on all ranks.

    Attributes:
        step: Optimizer steps done, skipped ones included.
        skipped_steps: Steps without an update because a loss or gradient was not finite.
        train_seconds: Time in steps, over all starts of the run.
        best: Model selection.
        structure: Of structural learning; None without it.
    """

    step: int = 0
    skipped_steps: int = 0
    train_seconds: float = 0.0
    best: BestScore = field(default_factory=BestScore)
    structure: StructureState | None = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "skipped_steps": self.skipped_steps,
            "train_seconds": self.train_seconds,
            "best": self.best.state_dict(),
            "structure": None if self.structure is None else self.structure.to_json(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.skipped_steps = state["step"], state["skipped_steps"]
        self.train_seconds = state["train_seconds"]
        self.best.load_state_dict(state["best"])
        structure = state.get("structure")
        self.structure = None if structure is None else StructureState.from_json(structure)


def rng_state() -> dict[str, Any]:
    """States of this rank's global generators: tensors and JSON values. Dropout and router noise use torch's."""
    version, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    format_version, values, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [format_version, list(values), gauss],
        "numpy_keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy": [str(version), int(position), int(has_gauss), float(cached)],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restores what :func:`rng_state` returned."""
    torch.set_rng_state(state["torch"])
    format_version, values, gauss = state["python"]
    random.setstate((format_version, tuple(values), gauss))
    name, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, state["numpy_keys"].numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
