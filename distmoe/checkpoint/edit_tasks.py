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

import shutil
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from distmoe.checkpoint import store
from distmoe.checkpoint.consolidate import read_moments, read_weights
from distmoe.checkpoint.fragments import Fragment
from distmoe.checkpoint.global_view import replicated
from distmoe.checkpoint.integrity import PARTS
from distmoe.checkpoint.manifest import TensorRecord
from distmoe.checkpoint.new_task import Policy, mixture, similarities
from distmoe.checkpoint.run_files import SHAPE, TOKENIZER, find_shape, find_tokenizer
from distmoe.checkpoint.storage import write_json
from distmoe.checkpoint.stored_model import StoredModel
from distmoe.checkpoint.task_axes import axes_of, gate_layer, pool_of
from distmoe.checkpoint.task_edit import TaskEdit, adding, removing
from distmoe.config import build
from distmoe.errors import CheckpointError, ConfigError
from distmoe.models.build import build_model
from distmoe.models.config import ModelConfig
from distmoe.models.layer_plan import routed_layers
from distmoe.models.shape import EncoderShape
from distmoe.parallel.process_groups import single_process
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec

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


@dataclass(frozen=True)
class _Mixtures:
    """Weights [M] of the seen tasks in what a new task is given; None: it gets a fresh row.

    Attributes:
        gates: Per routed layer, over the task group that it joins.
        conditional: Over all tasks: conditional modules know no task groups.
    """

    gates: tuple[Tensor | None, ...]
    conditional: Tensor | None

    def of(self, name: str, index: int | None) -> Tensor | None:
        """Of a tensor, whose gate is that of routed layer ``index``. A head is always fresh."""
        if index is not None:
            return self.gates[index]
        return None if name.startswith("heads.") else self.conditional


def add_task(
    checkpoint: Path | str,
    out: Path | str,
    spec: TaskSpec,
    *,
    task_folder: Path | str,
    policy: Policy = "nearest",
    like: str | None = None,
    overlay: Mapping[str, Any] | None = None,
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

    Raises:
        CheckpointError: If the checkpoint is incomplete or damaged, or ``out`` holds something.
        DataError: If a task of that name exists, or ``like`` does not.
        ConfigError: If the gate has no row that the policy could make.
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
    mixtures = _Mixtures(tuple(weights), everywhere)
    return _write(loaded, out, edit, config, mixtures, like=loaded.tasks[reference].name, overlay=overlay)


def remove_task(
    checkpoint: Path | str, out: Path | str, name: str, *, overlay: Mapping[str, Any] | None = None
) -> EditedRun:
    """Writes a run that goes on from a checkpoint with one task less.

    Args:
        checkpoint: A folder ``step_N``.
        out: Folder of the new run; new or empty.
        name: The task.
        overlay: Configuration values of the new run, by section, over those of the old one.

    Raises:
        CheckpointError: If the checkpoint is incomplete or damaged, or ``out`` holds something.
        DataError: If there is no such task.
        ConfigError: If it is the only one, or its experts cannot leave all layers alike.
    """
    loaded, out = _read(checkpoint), Path(out)
    edit = removing(loaded.tasks, loaded.grouping, loaded.tasks.id_of(name))
    config = deepcopy(loaded.manifest.config)
    section = config.setdefault("tasks", {})
    section["folders"] = {key: value for key, value in section.get("folders", {}).items() if key != name}
    if isinstance(table := _gate_section(config).get("table"), dict):
        _gate_section(config)["table"] = {key: row for key, row in table.items() if key != name}
    mixtures = _Mixtures((None,) * edit.grouping.num_layers, None)
    return _write(loaded, out, edit, config, mixtures, like=None, overlay=overlay)


def _read(checkpoint: Path | str) -> StoredModel:
    loaded = StoredModel.read(checkpoint)
    if loaded.model.family == "decoder":
        raise CheckpointError(
            "tasks cannot be added to a decoder, or taken from it",
            got=f"{checkpoint} with model.family=decoder",
            expected="a checkpoint of an encoder",
            remedy="start a run with the other tasks from an export of this one's weights",
        )
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


def _write(
    loaded: StoredModel,
    out: Path,
    edit: TaskEdit,
    config: dict[str, Any],
    mixtures: _Mixtures,
    *,
    like: str | None,
    overlay: Mapping[str, Any] | None,
) -> EditedRun:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(
            "the edited run would overwrite something",
            got=f"{out} exists and is not empty",
            expected="a new or empty folder",
            remedy="choose another folder, or remove this one",
        )
    old_parts = _parts(loaded)
    weights_by_name = {key.partition("/")[2]: value for key, value in old_parts.items()}
    shape = find_shape(loaded.folder, loaded.manifest.config, weights_by_name)
    assert isinstance(shape, EncoderShape), "decoders were refused when the checkpoint was read"
    tokenizer = find_tokenizer(loaded.folder, loaded.manifest.config)
    config = _config_of_new_run(loaded, out, edit, config, overlay or {})
    model = build(ModelConfig, config["model"])
    parts, records = _moved(loaded, edit, old_parts, model, shape, mixtures)
    draft = out.with_name(f"{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    write_json(draft / SHAPE, shape.to_json())
    shutil.copytree(tokenizer, draft / TOKENIZER, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    (draft / CONFIG_FILE).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    optimizer = loaded.manifest.optimizer | ({"adam_step": 0} if _begins_anew(model) else {})
    manifest = replace(
        loaded.manifest, step=0, tasks=edit.tasks.to_json(), grouping=edit.grouping.to_json(), config=config,
        metrics={}, score=None, optimizer=optimizer, tensors=records, files={},
    )  # fmt: skip
    fragments = [
        Fragment(key, replicated(key.partition("/")[2], tuple(value.shape)), 0, value.contiguous().view(-1))
        for key, value in parts.items()
    ]
    saved = store.save(draft / "checkpoints", manifest=manifest, fragments=fragments, trainer_state={}, rank_state={})
    if out.exists():
        out.rmdir()
    draft.rename(out)
    checkpoint = out / "checkpoints" / saved.name
    return EditedRun(out, checkpoint, edit.tasks, edit.grouping, like, (_count(old_parts), _count(parts)))


def _count(parts: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for key, value in parts.items() if key.startswith(("fp32/", "frozen/")))


def _parts(loaded: StoredModel) -> dict[str, Tensor]:
    """Every entry of the shards as a whole tensor."""
    weights = read_weights(loaded.folder)
    found = {f"{PARTS[loaded.manifest.tensors[name].kind][0]}/{name}": value for name, value in weights.items()}
    for part in ("exp_avg", "exp_avg_sq"):
        found |= {f"{part}/{name}": value for name, value in read_moments(loaded.folder, part).items()}  # type: ignore[arg-type]
    return found


def _config_of_new_run(
    loaded: StoredModel, out: Path, edit: TaskEdit, config: dict[str, Any], overlay: Mapping[str, Any]
) -> dict[str, Any]:
    """The old configuration with the new tasks, groups and folder; the overlay wins except over these."""
    config = _merged(config, overlay)
    config.setdefault("tasks", {})["names"] = list(edit.tasks.names)
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


def _moved(
    loaded: StoredModel,
    edit: TaskEdit,
    parts: Mapping[str, Tensor],
    config: ModelConfig,
    shape: EncoderShape,
    mixtures: _Mixtures,
) -> tuple[dict[str, Tensor], dict[str, TensorRecord]]:
    """All entries of the new checkpoint, and their records."""
    seed = loaded.manifest.config.get("run", {}).get("seed", 0)
    hosting = single_process(edit.grouping).hosting
    model = build_model(config, shape=shape, tasks=edit.tasks, grouping=edit.grouping, hosting=hosting, seed=seed)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = routed_layers(config.moe, shape.num_layers)
    gate = None if config.moe is None else config.moe.gate
    moved: dict[str, Tensor] = {}
    records: dict[str, TensorRecord] = {}
    for name, fresh in model.state_dict().items():
        axes, layer = axes_of(name, gate), gate_layer(name)
        index = None if layer is None else layers.index(layer)
        old_name = _old_name(name, layers, edit)
        was = loaded.manifest.tensors.get(old_name)
        if was is None:
            raise CheckpointError(
                f"{loaded.folder} lacks a tensor of the model that its manifest describes",
                got=f"no {old_name}",
                expected="a checkpoint of this version of distmoe",
                remedy="edit it with the version of distmoe that wrote it",
            )
        record = _record(was, fresh, trained=name in trained)
        mover = _Mover(loaded, edit, axes, index, mixtures.of(name, index))
        value, *moments = PARTS[record.kind]
        moved[f"{value}/{name}"] = mover.move(parts[f"{PARTS[was.kind][0]}/{old_name}"], fresh, value)
        for part in moments:
            zeros, old = torch.zeros_like(fresh), parts.get(f"{part}/{old_name}")
            if old is None or _begins_anew(config):
                moved[f"{part}/{name}"] = zeros
            else:
                moved[f"{part}/{name}"] = mover.move(old, zeros, part)
        records[name] = record
    return moved, records


def _begins_anew(config: ModelConfig) -> bool:
    """Whether Adam forgets: with a frozen body, old moments would move the rows of tasks that are not trained."""
    return config.freeze == "body"


def _record(was: TensorRecord, fresh: Tensor, *, trained: bool) -> TensorRecord:
    """What the new run makes of a tensor; one that it freezes or thaws changes its kind."""
    if was.kind == "buffer":
        return replace(was, shape=tuple(fresh.shape))
    kind = "trainable" if trained else "frozen"
    return replace(was, kind=kind, shape=tuple(fresh.shape), dtype="float32")


def _old_name(name: str, layers: tuple[int, ...], edit: TaskEdit) -> str:
    """Where a tensor was: the experts of a task group move with its number."""
    pool = pool_of(name)
    if pool is None:
        return name
    layer, task_group, rest = pool
    old = edit.group_origin[layers.index(layer)][task_group]
    return f"encoder.layers.{layer}.feed_forward.pools.g{old}.{rest}"


@dataclass(frozen=True)
class _Mover:
    """Moves the rows and columns of one tensor.

    Attributes:
        loaded: Before.
        edit: The change.
        axes: Letters of the tensor's axes.
        index: Which routed layer's gate, or None.
        mixture_M: Weights of the seen tasks in a new task's row; None: a fresh row.
    """

    loaded: StoredModel
    edit: TaskEdit
    axes: str
    index: int | None
    mixture_M: Tensor | None

    def move(self, old: Tensor, start: Tensor, part: str) -> Tensor:
        """Returns the new tensor: ``start`` where a task is new, the old values elsewhere."""
        if "E" in self.axes:
            old = old.index_select(self.axes.index("E"), torch.tensor(self._expert_origin()))
        if "M" not in self.axes:
            return old
        axis, result = self.axes.index("M"), start.clone()
        # Heads are padded to the widest one, which may have come or gone.
        width = min(old.shape[1], result.shape[1]) if "C" in self.axes else None
        source, target = (old, result) if width is None else (old[:, :width], result[:, :width])
        kept = [(new, was) for new, was in enumerate(self.edit.task_origin) if was is not None]
        rows = source.index_select(axis, torch.tensor([was for _, was in kept]))
        if not old.is_floating_point():
            rows = self._renumbered(rows)
        target.index_copy_(axis, torch.tensor([new for new, _ in kept]), rows)
        if self.mixture_M is not None and part != "exp_avg" and part != "exp_avg_sq" and self.axes != "MV":
            for new, was in enumerate(self.edit.task_origin):
                if was is None:
                    target.select(axis, new).copy_(self._mixed(source, axis))
        return result

    def _mixed(self, source: Tensor, axis: int) -> Tensor:
        assert self.mixture_M is not None
        if not source.is_floating_point():  # a table of experts: the row of the heaviest task
            return source.select(axis, int(self.mixture_M.argmax()))
        return torch.tensordot(self.mixture_M.to(source), source, dims=([0], [axis]))

    def _expert_origin(self) -> list[int]:
        """New expert of the layer -> old one."""
        assert self.index is not None
        assert self.loaded.model.moe is not None
        sizes = self.loaded.model.moe.pool_sizes(self.loaded.grouping.layers[self.index])
        first = list(accumulate(sizes, initial=0))
        return [first[old] + place for old in self.edit.group_origin[self.index] for place in range(sizes[old])]

    def _renumbered(self, table: Tensor) -> Tensor:
        """A table of expert numbers in the new numbering."""
        new_of = {old: new for new, old in enumerate(self._expert_origin())}
        return torch.tensor([new_of[value] for value in table.flatten().tolist()], dtype=table.dtype).view_as(table)
