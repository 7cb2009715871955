"""The run folder that goes on from an edited model: its configuration, and one checkpoint, ``step_0``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from distmoe.checkpoint import store
from distmoe.checkpoint.consolidate import read_moments, read_weights
from distmoe.checkpoint.edited_config import config_of_new_run
from distmoe.checkpoint.edited_tensors import Mixtures, begins_anew, moved_tensors
from distmoe.checkpoint.fragments import Fragment
from distmoe.checkpoint.global_view import replicated
from distmoe.checkpoint.integrity import PARTS
from distmoe.checkpoint.new_folder import new_folder, refuse_content
from distmoe.checkpoint.run_files import SHAPE, TOKENIZER, find_shape, find_tokenizer
from distmoe.checkpoint.storage import write_json
from distmoe.checkpoint.stored_model import StoredModel
from distmoe.checkpoint.task_edit import TaskEdit
from distmoe.config import build
from distmoe.models.config import ModelConfig
from distmoe.tasks import TaskGrouping, TaskSet

CONFIG_FILE = "config.yaml"

Complete = Callable[[dict[str, Any]], dict[str, Any]]
"""From the configuration of a new run to the checked one with every key."""


@dataclass(frozen=True)
class EditedRun:
    """What was written.

    Attributes:
        folder: The new run's folder.
        checkpoint: Its only checkpoint.
        tasks: Afterwards.
        grouping: Afterwards.
        like: Name of the task whose task groups a new task joined; None after a removal.
        parameters: Before and after.
    """

    folder: Path
    checkpoint: Path
    tasks: TaskSet
    grouping: TaskGrouping
    like: str | None
    parameters: tuple[int, int]


def write_edited_run(
    loaded: StoredModel,
    out: Path,
    edit: TaskEdit,
    config: dict[str, Any],
    mixtures: Mixtures,
    *,
    like: str | None,
    overlay: Mapping[str, Any] | None,
    complete: Complete,
) -> EditedRun:
    """Writes the folder of a run that begins with the edited model.

    Args:
        loaded: The checkpoint that was edited.
        out: Folder of the new run; new or empty.
        edit: The change.
        config: The old configuration with what the change alone decides.
        mixtures: What a new task is given.
        like: Name of the task whose task groups a new one joins.
        overlay: Values of the new run, by section, over those of ``config``.
        complete: Checks the configuration of the new run, and returns it with every key.

    Raises:
        CheckpointError: If ``out`` holds something.
        ConfigError: If the overlay makes another model, or ``complete`` refuses the configuration.
    """
    refuse_content(out, "the edited run")
    config = complete(config_of_new_run(loaded, out, edit, config, overlay or {}))
    old_parts = _parts(loaded)
    weights_by_name = {key.partition("/")[2]: value for key, value in old_parts.items()}
    shape = find_shape(loaded.folder, loaded.manifest.config, weights_by_name)
    tokenizer = find_tokenizer(loaded.folder, loaded.manifest.config)
    model = build(ModelConfig, config["model"])
    parts, records = moved_tensors(loaded, edit, old_parts, model, shape, mixtures)
    optimizer = loaded.manifest.optimizer | ({"adam_step": 0} if begins_anew(model) else {})
    manifest = replace(
        loaded.manifest, step=0, tasks=edit.tasks.to_json(), grouping=edit.grouping.to_json(), config=config,
        metrics={}, score=None, optimizer=optimizer, tensors=records, files={},
    )  # fmt: skip
    fragments = [
        Fragment(key, replicated(key.partition("/")[2], tuple(value.shape)), 0, value.contiguous().view(-1))
        for key, value in parts.items()
    ]
    with new_folder(out) as draft:
        write_json(draft / SHAPE, shape.to_json())
        shutil.copytree(tokenizer, draft / TOKENIZER, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        (draft / CONFIG_FILE).write_text(text, encoding="utf-8")
        saved = store.save(
            draft / "checkpoints", manifest=manifest, fragments=fragments, trainer_state={}, rank_state={}
        )
    checkpoint = out / "checkpoints" / saved.name
    return EditedRun(out, checkpoint, edit.tasks, edit.grouping, like, (_count(old_parts), _count(parts)))


def _parts(loaded: StoredModel) -> dict[str, Tensor]:
    """Every entry of the shards as a whole tensor."""
    weights = read_weights(loaded.folder)
    found = {f"{PARTS[loaded.manifest.tensors[name].kind][0]}/{name}": value for name, value in weights.items()}
    for part in ("exp_avg", "exp_avg_sq"):
        found |= {f"{part}/{name}": value for name, value in read_moments(loaded.folder, part).items()}  # type: ignore[arg-type]
    return found


def _count(parts: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for key, value in parts.items() if key.startswith(("fp32/", "frozen/")))
