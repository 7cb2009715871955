"""A checkpoint's whole model on one process, and the sources that its run had: for tools that train nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distmoe.checkpoint import store
from distmoe.checkpoint.stored_model import StoredModel
from distmoe.config import apply_overrides, build
from distmoe.models.build import MultiTaskModel
from distmoe.training.config import RunConfig
from distmoe.training.run_data import Sources, open_sources


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint gives back.

    Attributes:
        config: Of its run, with overrides.
        sources: Tasks, their texts, the tokenizer.
        stored: The checkpoint as values.
        model: On the CPU, float32, in eval mode.
    """

    config: RunConfig
    sources: Sources
    stored: StoredModel
    model: MultiTaskModel


def load_checkpoint(folder: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Reads a checkpoint, and opens what it was trained on.

    Args:
        folder: ``step_N`` of a run.
        overrides: ``section.key=value``, for example where the data is now.

    Raises:
        DistmoeError: If the checkpoint is incomplete or damaged, or its tasks or tokenizer cannot be had. Tasks that
            are not those of the checkpoint would be scored by the heads and experts of others.
    """
    stored = StoredModel.read(folder)
    config = build(RunConfig, apply_overrides(stored.manifest.config, overrides))
    if config.tasks.names is None:  # all that the source offers now, which may be more than at the time of training
        config = config.model_copy(
            update={"tasks": config.tasks.model_copy(update={"names": list(stored.tasks.names)})}
        )
    sources = open_sources(config)
    store.refuse_other_tasks(
        stored.folder, stored.tasks, sources.tasks, remedy="name the tasks and the data of the run (its config.yaml)"
    )
    return Loaded(config, sources, stored, stored.rebuild())
