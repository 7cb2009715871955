"""Runs with structural learning over ranks, what one process trains of the same examples, and how they are compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distmoe.checkpoint import folders
from distmoe.checkpoint.consolidate import read_moments, read_weights
from distmoe.checkpoint.store import read_trainer_state
from tests.integration.commands import ROOT, TRAIN, metrics, overrides, run_ranks

DRIVERS = ROOT / "tests" / "integration" / "drivers"
NUM_STEPS = 24
LIMIT = 1200  # seconds of one command: five ranks on two cores that others use as well
COMMON = (
    "structure.grouping=per_task", "model.moe.experts_per_task_group=2", f"schedule.num_steps={NUM_STEPS}",
    "run.log_every=1",
)  # fmt: skip
# Dropout's noise differs by rank.
CALM = ("model.dropout=0", "model.attention_dropout=0")


@dataclass(frozen=True)
class Case:
    """A run that is compared with one process."""

    num_ranks: int
    ep_size: int
    placement: str
    stage: int
    batch_size: int = 16

    def __str__(self) -> str:
        return f"{self.num_ranks} ranks, ep {self.ep_size}, {self.placement}, ZeRO-{self.stage}"


@dataclass(frozen=True)
class Compared:
    """A run over ranks beside one process that has trained on the same examples.

    Attributes:
        phases: Structural phases of the run over ranks.
        steps: Steps whose losses were compared.
        loss: Largest relative difference of a loss.
        weight: Largest difference of a weight at the end.
        inside: Bytes that all-to-alls sent inside blocks.
        between: Bytes that left a task group's ranks.
    """

    phases: list[dict]
    steps: list[int]
    loss: float
    weight: float
    inside: int
    between: int


def train(folder: Path, arguments: Sequence[str], *, num_ranks: int, script: Path = TRAIN) -> None:
    """Trains to the end on all ranks."""
    ended = run_ranks(folder, arguments, num_ranks=num_ranks, script=script, limit=LIMIT)
    assert [one.code for one in ended] == [0] * num_ranks, ended[0].output


def compare(case: Case, learn: Sequence[str], folder: Path) -> Compared:
    """Trains twice below ``folder``; the partitions that are found must be the same."""
    ranks, alone = folder / "ranks", folder / "alone"
    deepspeed = folder / "deepspeed.json"
    deepspeed.write_text(json.dumps({"zero_optimization": {"stage": case.stage}}))
    settings = (*COMMON, *learn, *CALM, f"data.batch_size={case.batch_size}")
    parallel = (f"data.micro_batch_size={case.batch_size // case.num_ranks}", f"parallel.ep_size={case.ep_size}",
                f"parallel.placement={case.placement}", f"parallel.deepspeed={deepspeed}")  # fmt: skip
    train(ranks, ["--resume", "never", *overrides(ranks, *settings, *parallel)], num_ranks=case.num_ranks)
    union = [str(case.num_ranks), str(case.ep_size), case.placement]
    one_process = overrides(alone, *settings, "parallel.deepspeed=zero1_fp32")
    train(alone, [*union, *one_process], num_ranks=1, script=DRIVERS / "union.py")
    assert [record["grouping"] for record in phases(ranks)] == [record["grouping"] for record in phases(alone)]
    expected, found = losses(alone), losses(ranks)
    assert expected.keys() == found.keys()
    routed = [layer for line in metrics(ranks / "run") if "routing" in line for layer in line["routing"].values()]
    return Compared(
        phases=phases(ranks),
        steps=sorted(expected),
        loss=max(abs(found[step] / expected[step] - 1) for step in expected),
        weight=_largest_difference(_last(ranks), _last(alone)),
        inside=sum(layer["bytes"] for layer in routed),
        between=sum(layer["bytes_between_task_groups"] for layer in routed),
    )


def kill(
    folder: Path, moment: str, count: int, arguments: Sequence[str], *, latest: str | None
) -> dict[str, Any] | None:
    """kill -9 of rank 1 of two or, in a save, of rank 0, at a moment of ``interrupt.py``.

    Returns:
        Where structural learning stands in the checkpoint from which the run goes on, which must be ``latest``.
    """
    rank = 0 if moment == "rename" else 1
    arguments = [moment, str(count), str(rank), "SIGKILL", *arguments]
    ended = run_ranks(folder, arguments, script=DRIVERS / "interrupt.py", limit=LIMIT)
    assert ended[rank].code == -9, ended[rank].output
    found = folders.latest(folder / "run" / "checkpoints")
    assert (None if found is None else found.name) == latest
    return None if found is None else read_trainer_state(found)["progress"]["structure"]


def phases(folder: Path) -> list[dict]:
    """What the log says about each structural phase."""
    return [line["structure"] for line in metrics(folder / "run") if "structure" in line]


def losses(folder: Path) -> dict[int, float]:
    """Loss by step."""
    return {line["step"]: line["loss"] for line in metrics(folder / "run") if "loss" in line}


def digest(folder: Path) -> str:
    """Of all weights and both moments of the last checkpoint."""
    total = hashlib.sha256()
    for tensors in (
        read_weights(_last(folder)), *(read_moments(_last(folder), part) for part in ("exp_avg", "exp_avg_sq"))
    ):  # fmt: skip
        for name in sorted(tensors):
            total.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def _last(folder: Path) -> Path:
    return folder / "run" / "checkpoints" / f"step_{NUM_STEPS}"


def _largest_difference(one: Path, other: Path) -> float:
    first, second = read_weights(one), read_weights(other)
    assert first.keys() == second.keys()
    return max(float(torch.max(torch.abs(first[name] - second[name]))) for name in first)
