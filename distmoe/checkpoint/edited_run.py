"""The run folder that goes on from an edited model: its configuration, and one checkpoint, ``step_0``."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from distmoe.checkpoint import store
from distmoe.checkpoint.consolidate import read_moments, read_weights
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

    Raises:
        CheckpointError: If ``out`` holds something.
    """
    refuse_content(out, "the edited run")
    old_parts = _parts(loaded)
    weights_by_name = {key.partition("/")[2]: value for key, value in old_parts.items()}
    shape = find_shape(loaded.folder, loaded.manifest.config, weights_by_name)
    tokenizer = find_tokenizer(loaded.folder, loaded.manifest.config)
    config = _config_of_new_run(loaded, out, edit, config, overlay or {})
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


def _config_of_new_run(
    loaded: StoredModel, out: Path, edit: TaskEdit, config: dict[str, Any], overlay: Mapping[str, Any]
) -> dict[str, Any]:
    """The old configuration with the new tasks, groups and folder; the overlay wins except over these."""
    config = _merged(config, overlay)
    config.setdefault("tasks", {})["names"] = list(edit.tasks.names)
    # Learning goes on from a state of its own, which does not know the edited tasks; what it has found is kept.
    config.setdefault("structure", {})["learn"] = None
    moe = config.get("model", {}).get("moe")
    if moe is not None and edit.grouping.layers:
        assert loaded.model.moe is not None
        if loaded.model.moe.experts_per_task_group is None:
            moe["num_experts"] = edit.num_experts(loaded.model.moe.num_experts, loaded.grouping)
        config.setdefault("structure", {})["grouping"] = [
            [[edit.tasks[task].name for task in members] for members in partition] for partition in edit.grouping.layers
        ]
    config.setdefault("data", {})["tokenizer"] = str(out.resolve() / TOKENIZER)
    _set_trained_tasks(config, edit)
    run = config.setdefault("run", {})
    run["name"], run["output_dir"] = out.resolve().name, str(out.resolve().parent)
    return config


def _set_trained_tasks(config: dict[str, Any], edit: TaskEdit) -> None:
    """With a frozen body, examples of the tasks that were there could change nothing but their own heads and routes."""
    added = [edit.tasks[new].name for new, was in enumerate(edit.task_origin) if was is None]
    sampling = config["data"].setdefault("sampling", {})
    if added and config.get("model", {}).get("freeze") == "body":
        sampling["tasks"] = added
    elif sampling.get("tasks") is not None:
        sampling["tasks"] = [name for name in sampling["tasks"] if name in edit.tasks.names] or None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _parts(loaded: StoredModel) -> dict[str, Tensor]:
    """Every entry of the shards as a whole tensor."""
    weights = read_weights(loaded.folder)
    found = {f"{PARTS[loaded.manifest.tensors[name].kind][0]}/{name}": value for name, value in weights.items()}
    for part in ("exp_avg", "exp_avg_sq"):
        found |= {f"{part}/{name}": value for name, value in read_moments(loaded.folder, part).items()}  # type: ignore[arg-type]
    return found


def _count(parts: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for key, value in parts.items() if key.startswith(("fp32/", "frozen/")))
