"""What becomes of a gate's tensors when task groups are merged: their rows follow the experts.

The axes of a gate's tensor are the last part of its name (``logits_ME``: tasks, experts). Along E, the row of a new
expert is made of the rows of the experts that it is made of. A tensor with a row per task (M) needs no mean: a task
keeps the scores that it had given to the experts of its own task group.

Shape letters: M tasks, E experts of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distmoe.structure.merging import shares_of, weighted_mean
from distmoe.structure.moment_merging import AdamMoments, sum_moments

ExpertTable = Sequence[tuple[int, ...]]
"""Per new expert, the old experts that it is made of."""


def axes_of(name: str) -> str:
    """``"...gate.logits_ME"`` -> ``"ME"``; empty if the name does not say."""
    suffix = name.rpartition(".")[2].rpartition("_")[2]
    return suffix if suffix.isupper() else ""


def has_experts(name: str) -> bool:
    return "E" in axes_of(name)


def regroup(name: str, tensor: Tensor, table: ExpertTable, own_first_M: Sequence[int], per_group: int) -> Tensor:
    """The tensor of the merged layer's gate.

    Args:
        name: Full name; its suffix tells the axes.
        tensor: Of the gate before.
        table: Old experts of each new one.
        own_first_M: First expert of each task's old task group.
        per_group: Experts of a task group.
    """

    def mean(rows: list[Tensor]) -> Tensor:
        return weighted_mean(rows, shares_of([1] * len(rows)))

    return _along_experts(name, tensor, table, own_first_M, per_group, mean)


def regroup_moments(
    name: str,
    moments: AdamMoments,
    table: ExpertTable,
    own_first_M: Sequence[int],
    per_group: int,
    *,
    step: int,
    betas: tuple[float, float],
) -> AdamMoments:
    """Adam's moments of it: carried with a task's scores, added where rows were averaged."""
    pair = torch.stack([moments.mean, moments.square], dim=-1)

    def add(rows: list[Tensor]) -> Tensor:
        merged = sum_moments([AdamMoments(row[..., 0], row[..., 1]) for row in rows], step=step, betas=betas)
        return torch.stack([merged.mean, merged.square], dim=-1)

    mean, square = _along_experts(name, pair, table, own_first_M, per_group, add).unbind(-1)
    return AdamMoments(mean, square)


def _along_experts(
    name: str,
    tensor: Tensor,
    table: ExpertTable,
    own_first_M: Sequence[int],
    per_group: int,
    join: Callable[[list[Tensor]], Tensor],
) -> Tensor:
    axes = axes_of(name)
    axis = axes.index("E")
    if "M" not in axes:
        rows = tensor.unbind(axis)
        new = [rows[old[0]] if len(old) == 1 else join([rows[expert] for expert in old]) for old in table]
        return torch.stack(new, dim=axis)
    task_axis = axes.index("M")
    per_task = []
    for first, values in zip(own_first_M, tensor.unbind(task_axis), strict=True):
        own = range(first, first + per_group)
        # Of a merge, the expert of the task's own task group; elsewhere, where the task never goes, the first.
        chosen = [next((expert for expert in old if expert in own), old[0]) for old in table]
        per_task.append(values.index_select(axis - (task_axis < axis), torch.tensor(chosen, device=values.device)))
    return torch.stack(per_task, dim=task_axis)
