"""Positions of a batch dealt to tensor ranks: collectives with gradient between slices and the whole.

Sequence parallelism (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2) keeps what lies between two cut matrices
as slices along the sequence. Here the positions of a batch stand behind each other, row after row, and every rank has a
run of them. Drawn, 2 rows of 3 positions over 4 ranks::

    whole    a0 a1 a2 b0 b1 b2          N = 6
    slices   a0 a1 | a2 b0 | b1 b2 | .. n = 2; rows of zeros where N is not 4 n

Cutting the first dimension costs no transposition, few filled rows however short the sequences, and no rank needs to
know their length: whatever works on positions alone works on a slice.

megatron-core's own mappings ask for a CUDA device; these run on gloo as well.

Shape letters: N positions of the whole, n of a slice, D width, T ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup


def own_rows(whole: Tensor, process_group: ProcessGroup) -> Tensor:
    """Returns this rank's rows ``[n, ...]`` of ``[N, ...]``, zeros where there are none. No collective."""
    count = -(-len(whole) // process_group.size())
    first = count * process_group.rank()
    return _filled(whole[first : first + count], count)


def gather_rows(slice_nD: Tensor, process_group: ProcessGroup, num_rows: int | None = None) -> Tensor:
    """Returns the slices of all ranks, ``[N, D]``; collective.

    What follows must be the same computation on every rank: backward takes each rank's own rows of its gradient,
    without a sum.

    Args:
        slice_nD: Of equal shape on all ranks.
        process_group: Ranks in the order of their slices.
        num_rows: N; None: T n, with the filled rows.
    """
    return _GatherRows.apply(slice_nD, process_group, num_rows)  # type: ignore[no-any-return]


def split_rows(whole_ND: Tensor, process_group: ProcessGroup) -> Tensor:
    """Returns this rank's rows of what every rank has, ``[n, D]``; backward gathers, a collective."""
    return _SplitRows.apply(whole_ND, process_group)  # type: ignore[no-any-return]


def sum_rows(partial_ND: Tensor, process_group: ProcessGroup) -> Tensor:
    """Returns this rank's rows of the sum over ranks, ``[n, D]``; collective: reduce-scatter, backward all-gather."""
    return _SumRows.apply(partial_ND, process_group)  # type: ignore[no-any-return]


def gathered_linears(
    slice_nD: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    process_group: ProcessGroup,
    num_rows: int | None = None,
) -> tuple[Tensor, ...]:
    """Linear maps of the whole by this rank's columns; collective: all-gather, backward all-gather and reduce-scatter.

    Only the slice is kept for backward, which gathers it again beside the gradient of the input (section 4.2.2 of the
    paper); the sum of that gradient runs beside the gradients of the weights.

    Args:
        slice_nD: Of equal shape on all ranks.
        weights: This rank's, ``[out, D]`` each.
        biases: One or None per weight.
        process_group: Ranks in the order of their slices.
        num_rows: N; None: T n, with the filled rows.

    Returns:
        ``[N, out]`` per weight.
    """
    return _GatheredLinears.apply(slice_nD, process_group, num_rows, *weights, *biases)  # type: ignore[no-any-return]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slice_nD: Tensor, process_group: ProcessGroup, num_rows: int | None) -> Tensor:
        ctx.process_group = process_group
        return _all_gather(slice_nD, process_group)[:num_rows]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor, None, None]:
        return own_rows(gradient_ND, ctx.process_group), None, None


class _SplitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole_ND: Tensor, process_group: ProcessGroup) -> Tensor:
        ctx.process_group, ctx.num_rows = process_group, len(whole_ND)
        return own_rows(whole_ND, process_group).clone()  # a view would keep the whole alive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_nD: Tensor) -> tuple[Tensor, None]:
        return _all_gather(gradient_nD, ctx.process_group)[: ctx.num_rows], None


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial_ND: Tensor, process_group: ProcessGroup) -> Tensor:
        ctx.process_group, ctx.num_rows = process_group, len(partial_ND)
        slice_nD, summed = _reduce_scatter(partial_ND, process_group)
        summed.wait()
        return slice_nD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_nD: Tensor) -> tuple[Tensor, None]:
        return _all_gather(gradient_nD, ctx.process_group)[: ctx.num_rows], None


class _GatheredLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, slice_nD: Tensor, process_group: ProcessGroup, num_rows: int | None, *parameters: Tensor | None
    ) -> tuple[Tensor, ...]:
        weights, biases = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        ctx.process_group, ctx.num_rows = process_group, num_rows
        ctx.save_for_backward(slice_nD, *weights)
        whole_ND = _all_gather(slice_nD, process_group)[:num_rows]
        return tuple(F.linear(whole_ND, weight, bias) for weight, bias in zip(weights, biases, strict=True))  # type: ignore[arg-type]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slice_nD, *weights = ctx.saved_tensors
        needs_slice, _, _, *needed = ctx.needs_input_grad
        needs_weight, needs_bias = needed[: len(weights)], needed[len(weights) :]
        found: list[Tensor | None] = [None] * len(needed)
        # Which gradients are needed is the same on all ranks, and so is the sequence of collectives.
        if any(needs_weight):
            whole_ND, gathered = _start_gather(slice_nD, ctx.process_group)
        if needs_slice:
            partial_ND = gradients[0] @ weights[0]
            for gradient_No, weight in zip(gradients[1:], weights[1:], strict=True):
                partial_ND.addmm_(gradient_No, weight)
            own_nD, summed = _reduce_scatter(partial_ND, ctx.process_group)
        for index, gradient_No in enumerate(gradients):
            if needs_bias[index]:
                found[len(weights) + index] = gradient_No.sum(0)
        if any(needs_weight):
            gathered.wait()
            for index, gradient_No in enumerate(gradients):
                if needs_weight[index]:
                    found[index] = gradient_No.t() @ whole_ND[: ctx.num_rows]
        if needs_slice:
            summed.wait()
        return own_nD if needs_slice else None, None, None, *found


def _filled(rows: Tensor, count: int) -> Tensor:
    """Appends rows of zeros up to ``count``."""
    missing = count - len(rows)
    return torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:]))) if missing else rows


def _start_gather(slice_nD: Tensor, process_group: ProcessGroup) -> tuple[Tensor, dist.Work]:
    whole = slice_nD.new_empty(process_group.size() * len(slice_nD), *slice_nD.shape[1:])
    return whole, dist.all_gather_into_tensor(whole, slice_nD.contiguous(), group=process_group, async_op=True)


def _all_gather(slice_nD: Tensor, process_group: ProcessGroup) -> Tensor:
    whole, gathered = _start_gather(slice_nD, process_group)
    gathered.wait()
    return whole


def _reduce_scatter(partial_ND: Tensor, process_group: ProcessGroup) -> tuple[Tensor, dist.Work]:
    """Starts the sum; a collective. The second value's ``wait`` comes before the first is read."""
    count = -(-len(partial_ND) // process_group.size())
    filled = _filled(partial_ND, process_group.size() * count).contiguous()
    slice_nD = filled.new_empty(count, *filled.shape[1:])
    return slice_nD, dist.reduce_scatter_tensor(slice_nD, filled, group=process_group, async_op=True)
