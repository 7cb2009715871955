"""Where each tensor of a model goes when a task comes or leaves: rows of tasks, columns and numbers of experts.

A fresh model of the new configuration says which tensors there are, and gives new rows: the head, and the row of a gate
that is to be learned. Everything else is moved, weights and moments alike. A new task's moments are zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from distmoe.checkpoint.integrity import PARTS
from distmoe.checkpoint.manifest import TensorRecord
from distmoe.checkpoint.stored_model import StoredModel
from distmoe.checkpoint.task_axes import axes_of, gate_layer, pool_of
from distmoe.checkpoint.task_edit import TaskEdit
from distmoe.errors import CheckpointError
from distmoe.models.build import build_model
from distmoe.models.config import ModelConfig
from distmoe.models.layer_plan import routed_layers
from distmoe.models.shape import ModelShape
from distmoe.parallel.process_groups import single_process


@dataclass(frozen=True)
class Mixtures:
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


def moved_tensors(
    loaded: StoredModel,
    edit: TaskEdit,
    parts: Mapping[str, Tensor],
    config: ModelConfig,
    shape: ModelShape,
    mixtures: Mixtures,
) -> tuple[dict[str, Tensor], dict[str, TensorRecord]]:
    """Returns all entries of the new checkpoint, and their records.

    Args:
        loaded: The checkpoint.
        edit: The change.
        parts: Every entry of its shards as a whole tensor.
        config: Section ``model`` of the new run.
        shape: Of the model; it does not change.
        mixtures: What a new task is given.

    Raises:
        CheckpointError: If the checkpoint lacks a tensor, or has one of another shape.
    """
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
        weight = mover.move(parts[f"{PARTS[was.kind][0]}/{old_name}"], fresh, value)
        if weight.shape != fresh.shape:
            raise CheckpointError(
                f"{loaded.folder} has a tensor of another shape than the model that its manifest describes",
                got=f"{name} {list(weight.shape)}",
                expected=list(fresh.shape),
                remedy="edit it with the version of distmoe that wrote it",
            )
        moved[f"{value}/{name}"] = weight
        for part in moments:
            zeros, old = torch.zeros_like(fresh), parts.get(f"{part}/{old_name}")
            if old is None or begins_anew(config):
                moved[f"{part}/{name}"] = zeros
            else:
                moved[f"{part}/{name}"] = mover.move(old, zeros, part)
        records[name] = record
    return moved, records


def begins_anew(config: ModelConfig) -> bool:
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
    old = edit.group_origin[layers.index(pool.layer)][pool.task_group]
    return replace(pool, task_group=old).name


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
