"""Slices of the last dimension to the whole tensor, with gradient.

megatron-core's own function for it asks for a CUDA device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup


def gather_slices(slice_: Tensor, process_group: ProcessGroup) -> Tensor:
    """Returns the slices of all ranks beside each other, ``[..., n * width]``; collective, also for no row.

    What follows must be the same computation on every rank: the backward pass takes each rank's own part of its
    gradient, without a sum.

    Args:
        slice_: ``[..., width]``, of equal shape on all ranks.
        process_group: Ranks in the order of their slices.
    """
    return _GatherSlices.apply(slice_, process_group)  # type: ignore[no-any-return]


class _GatherSlices(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slice_: Tensor, process_group: ProcessGroup) -> Tensor:
        ctx.rank, ctx.width = process_group.rank(), slice_.shape[-1]
        rows = slice_.contiguous().view(-1, ctx.width)
        gathered = rows.new_empty((process_group.size() * rows.shape[0], ctx.width))
        dist.all_gather_into_tensor(gathered, rows, group=process_group)
        by_rank = gathered.view(process_group.size(), *slice_.shape)
        return by_rank.movedim(0, -2).flatten(-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.narrow(-1, ctx.rank * ctx.width, ctx.width), None
