"""Adds a task to a checkpoint, or removes one, and writes the start of a new run.

1. The task set, the task grouping and the configuration are changed as values.
2. A fresh model of the new configuration says which tensors there are, and gives new rows: the head, and the row of a
   gate that is to be learned.
3. Each tensor of the checkpoint, weights and moments alike, moves to its new place: rows of tasks, columns of experts,
   numbers of task groups. A new task's moments are zero, its route is a mixture of seen routes (`new_task`).
4. A run folder is written with one checkpoint, ``step_0``: progress and data position begin anew, Adam goes on,
   unless the new run freezes the body (recipe `add_task_frozen`): then Adam begins anew, and the new task alone is
   trained.

What a remaining task computes does not change by a bit: no number that it reads is recomputed.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor

from distmoe.checkpoint import store
from distmoe.checkpoint.edited_run import Complete, EditedRun, write_edited_run
from distmoe.checkpoint.edited_tensors import Mixtures
from distmoe.checkpoint.new_task import Policy, mixture, similarities
from distmoe.checkpoint.stored_model import StoredModel
from distmoe.checkpoint.task_edit import TaskEdit, adding, removing
from distmoe.errors import CheckpointError, ConfigError
from distmoe.models.config import ModelConfig
from distmoe.tasks import TaskSpec


def add_task(
    checkpoint: Path | str,
    out: Path | str,
    spec: TaskSpec,
    *,
    task_folder: Path | str,
    policy: Policy = "nearest",
    like: str | None = None,
    overlay: Mapping[str, Any] | None = None,
    complete: Complete = dict,
) -> EditedRun:
    """Writes a run that goes on from a checkpoint with one task more.

    Args:
        checkpoint: A folder ``step_N``.
        out: Folder of the new run; new or empty.
        spec: The new task.
        task_folder: Where its examples are; recorded in the configuration.
        policy: How it finds its route, see :mod:`distmoe.checkpoint.new_task`.
        like: Task whose task groups it joins, and whose row `nearest` takes; None: the one with the most similar
            description.
        overlay: Configuration values of the new run, by section, over those of the old one.
        complete: Checks the configuration of the new run before anything is written, and returns it with every key.

    Raises:
        CheckpointError: If the checkpoint is incomplete or damaged, or ``out`` holds something.
        DataError: If a task of that name exists, or ``like`` does not.
        ConfigError: If the gate has no row that the policy could make, or the overlay makes another model.
    """
    loaded, out = _read(checkpoint), Path(out)
    _check_policy(loaded.model, policy)
    similarity_M = similarities(loaded.tasks, spec)
    reference = int(similarity_M.argmax()) if like is None else loaded.tasks.id_of(like)
    edit = adding(loaded.tasks, loaded.grouping, spec, like=reference)
    weights: list[Tensor | None] = []
    for layer, partition in enumerate(loaded.grouping.layers):
        members = partition[loaded.grouping.task_group_of(layer, reference)]
        weights.append(mixture(policy, similarity_M, members=members, nearest=reference))
    everywhere = mixture(policy, similarity_M, members=range(len(loaded.tasks)), nearest=reference)
    config = _with_task(loaded, edit, spec, Path(task_folder), reference)
    mixtures = Mixtures(tuple(weights), everywhere)
    like = loaded.tasks[reference].name
    return write_edited_run(loaded, out, edit, config, mixtures, like=like, overlay=overlay, complete=complete)


def remove_task(
    checkpoint: Path | str,
    out: Path | str,
    name: str,
    *,
    overlay: Mapping[str, Any] | None = None,
    complete: Complete = dict,
) -> EditedRun:
    """Writes a run that goes on from a checkpoint with one task less.

    Args:
        checkpoint: A folder ``step_N``.
        out: Folder of the new run; new or empty.
        name: The task.
        overlay: Configuration values of the new run, by section, over those of the old one.
        complete: Checks the configuration of the new run before anything is written, and returns it with every key.

    Raises:
        CheckpointError: If the checkpoint is incomplete or damaged, or ``out`` holds something.
        DataError: If there is no such task.
        ConfigError: If it is the only one, its experts cannot leave all layers alike, or the overlay makes another
            model.
    """
    loaded, out = _read(checkpoint), Path(out)
    edit = removing(loaded.tasks, loaded.grouping, loaded.tasks.id_of(name))
    config = deepcopy(loaded.manifest.config)
    section = config.setdefault("tasks", {})
    section["folders"] = {key: value for key, value in section.get("folders", {}).items() if key != name}
    if isinstance(table := _gate_section(config).get("table"), dict):
        _gate_section(config)["table"] = {key: row for key, row in table.items() if key != name}
    mixtures = Mixtures((None,) * edit.grouping.num_layers, None)
    return write_edited_run(loaded, out, edit, config, mixtures, like=None, overlay=overlay, complete=complete)


def _read(checkpoint: Path | str) -> StoredModel:
    loaded = StoredModel.read(checkpoint)
    moe = loaded.model.moe
    if moe is not None and moe.experts_per_task is not None:
        raise CheckpointError(
            "the experts of this model are counted by its tasks, so they would change with them",
            got=f"model.moe.experts_per_task={moe.experts_per_task}",
            expected="experts per layer or per task group",
            remedy="train with model.moe.num_experts or model.moe.experts_per_task_group to edit tasks afterwards",
        )
    if moe is not None and moe.unit == "block":
        raise CheckpointError(
            "tasks of a model with whole layers per task group cannot be edited",
            got="model.moe.unit=block",
            expected="model.moe.unit=ffn",
            remedy="train anew with the other task set",
        )
    store.check(loaded.folder, tasks=loaded.tasks, grouping=loaded.grouping)
    return loaded


def _check_policy(model: ModelConfig, policy: Policy) -> None:
    gate = None if model.moe is None else model.moe.gate
    if gate is not None and gate.kind == "fixed" and policy == "router_only":
        raise ConfigError(
            "gate fixed has no router that a new task could learn",
            got="policy router_only",
            expected="nearest | average | description (each takes the experts of the most similar task)",
            remedy="choose --policy nearest",
        )


def _gate_section(config: dict[str, Any]) -> dict[str, Any]:
    return (config.get("model", {}).get("moe") or {}).get("gate") or {}


def _with_task(loaded: StoredModel, edit: TaskEdit, spec: TaskSpec, folder: Path, reference: int) -> dict[str, Any]:
    config = deepcopy(loaded.manifest.config)
    section, root = config.setdefault("tasks", {}), config.get("data", {}).get("root")
    among_the_others = section.get("source") == "local" and root and Path(root).resolve() == folder.resolve().parent
    if not among_the_others or spec.name != folder.name:
        section.setdefault("folders", {})[spec.name] = str(folder.resolve())
    if isinstance(table := _gate_section(config).get("table"), dict):
        table[spec.name] = list(table[loaded.tasks[reference].name])
    return config
