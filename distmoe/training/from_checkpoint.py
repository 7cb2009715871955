"""A checkpoint's whole model on one process, and the sources that its run had: for tools that train nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distmoe.checkpoint.consolidate import read_weights
from distmoe.checkpoint.manifest import read_manifest
from distmoe.config import apply_overrides, build
from distmoe.models.build import MultiTaskModel, build_model
from distmoe.models.shape import resolve_shape
from distmoe.parallel.process_groups import single_process
from distmoe.tasks import TaskGrouping
from distmoe.training.config import RunConfig
from distmoe.training.run_data import Sources, open_sources


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint gives back."""

    config: RunConfig
    sources: Sources
    grouping: TaskGrouping
    model: MultiTaskModel


def load_checkpoint(folder: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Builds the model of a checkpoint and loads its weights.

    Args:
        folder: ``step_N`` of a run.
        overrides: ``section.key=value``, for example where the data is now.

    Raises:
        DistmoeError: If the checkpoint is incomplete, or its tasks or tokenizer cannot be had.
    """
    manifest = read_manifest(folder)
    config = build(RunConfig, apply_overrides(manifest.config, overrides))
    sources = open_sources(config)
    grouping = TaskGrouping.from_json(manifest.grouping)
    model = build_model(
        config.model,
        shape=resolve_shape(config.model, sources.vocab_size, sources.pad_token_id),
        tasks=sources.tasks,
        grouping=grouping,
        hosting=single_process(grouping).hosting,
        seed=config.run.seed,
    )
    model.load_state_dict(read_weights(folder))
    return Loaded(config, sources, grouping, model)
