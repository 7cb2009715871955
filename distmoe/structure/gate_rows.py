"""What becomes of a gate's tensors when task groups are merged: their rows follow the experts.

The axes of a gate's tensor are the last part of its name (``logits_ME``: tasks, experts). Along E, the row of a new
expert is made of the rows of the experts that it is made of. A tensor with a row per task (M) needs no mean: a task
keeps the scores that it had given to the experts of its own task group.

Where a pool has grown, a task may go to experts that it has no scores for. In a table of scores (``logits_ME``) they
begin below all its own, so that every task goes where it went: the function at the border is the one before.

Shape letters: M tasks, E experts of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distmoe.structure.merging import shares_of, weighted_mean
from distmoe.structure.moment_merging import AdamMoments, sum_moments

ExpertTable = Sequence[tuple[int, ...]]
"""Per new expert, the old experts that it is made of."""

# How far below its own experts a task scores those that its pool has gained: e times less probable.
_MARGIN = 1.0


@dataclass(frozen=True)
class Reach:
    """Which experts one task may choose.

    Attributes:
        old: Of the gate before.
        new: Of the gate after.
    """

    old: range
    new: range


def axes_of(name: str) -> str:
    """``"...gate.logits_ME"`` -> ``"ME"``; empty if the name does not say."""
    suffix = name.rpartition(".")[2].rpartition("_")[2]
    return suffix if suffix.isupper() else ""


def has_experts(name: str) -> bool:
    return "E" in axes_of(name)


def regroup(name: str, tensor: Tensor, table: ExpertTable, reach_M: Sequence[Reach]) -> Tensor:
    """The tensor of the merged layer's gate.

    Args:
        name: Full name; its suffix tells the axes.
        tensor: Of the gate before.
        table: Old experts of each new one.
        reach_M: What each task may choose, before and after.
    """

    def mean(rows: list[Tensor]) -> Tensor:
        return weighted_mean(rows, shares_of([1] * len(rows)))

    axes = axes_of(name)
    if "M" not in axes:
        new = _along_experts(tensor, axes.index("E"), table, mean)
        # A bias makes up for the experts of one pool that are gone: logsumexp where their scores agree.
        return new + tensor.new_tensor([_gone(old, reach_M) for old in table]) if axes == "E" else new
    grown = axes == "ME"
    # In a table of scores, experts that become one keep their total probability.
    join = (lambda rows: torch.stack(rows).logsumexp(dim=0)) if grown else mean
    new = _per_task(tensor, axes, table, reach_M, join)
    if grown:
        for task, reach in enumerate(reach_M):
            foreign = [expert for expert in reach.new if not set(table[expert]) & set(reach.old)]
            own = [expert for expert in reach.new if expert not in foreign]
            if foreign:
                new[task, foreign] = new[task, own].min() - _MARGIN
    return new


def _gone(old: Sequence[int], reach_M: Sequence[Reach]) -> float:
    """Logarithm of how many of these experts one task could choose among."""
    return math.log(max(1, *(sum(expert in reach.old for expert in old) for reach in reach_M)))


def regroup_moments(
    name: str,
    moments: AdamMoments,
    table: ExpertTable,
    reach_M: Sequence[Reach],
    *,
    step: int,
    betas: tuple[float, float],
) -> AdamMoments:
    """Adam's moments of it: carried with a task's scores, added where rows were joined."""
    pair = torch.stack([moments.mean, moments.square], dim=-1)

    def add(rows: list[Tensor]) -> Tensor:
        merged = sum_moments([AdamMoments(row[..., 0], row[..., 1]) for row in rows], step=step, betas=betas)
        return torch.stack([merged.mean, merged.square], dim=-1)

    axes = axes_of(name)
    if "M" in axes:
        joined = _per_task(pair, axes, table, reach_M, add)
    else:
        joined = _along_experts(pair, axes.index("E"), table, add)
    mean, square = joined.unbind(-1)
    return AdamMoments(mean, square)


def _along_experts(tensor: Tensor, axis: int, table: ExpertTable, join: Callable[[list[Tensor]], Tensor]) -> Tensor:
    rows = tensor.unbind(axis)
    new = [rows[old[0]] if len(old) == 1 else join([rows[expert] for expert in old]) for old in table]
    return torch.stack(new, dim=axis)


def _per_task(
    tensor: Tensor,
    axes: str,
    table: ExpertTable,
    reach_M: Sequence[Reach],
    join: Callable[[list[Tensor]], Tensor],
) -> Tensor:
    task_axis, axis = axes.index("M"), axes.index("E")
    axis -= task_axis < axis
    per_task = []
    for reach, values in zip(reach_M, tensor.unbind(task_axis), strict=True):
        # Of a merge, the experts of the task's own task group; elsewhere, where it never went, the first.
        own = [tuple(expert for expert in old if expert in reach.old) or old[:1] for old in table]
        per_task.append(_along_experts(values, axis, own, join))
    return torch.stack(per_task, dim=task_axis)
