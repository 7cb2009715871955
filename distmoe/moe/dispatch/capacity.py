"""An upper limit on the rows of an expert, agreed by the ranks of a block.

The limit of a task group's experts is ``max(round(cf * rows / experts), 4)`` with the rows of the task group over the
block (tokens x choices) and its experts; cf 1.25 is usual in training and 2.0 in evaluation (Switch Transformer,
arXiv 2101.03961, eq. 3). Rows come first from lower ranks, on one rank in token order; rows behind the limit pass
with zero output and are counted.

Shape letters: P ranks of the block, S slots of the block, N (token, choice) pairs, R rows that are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

MINIMUM = 4


def kept_rows(counts_PS: Tensor, pool_of_slot_S: Tensor, capacity_factor: float) -> Tensor:
    """How many rows each rank may send to each slot, ``[P, S]``; the same on all ranks, without asking the host."""
    counts_S = counts_PS.sum(0)
    # There are at most as many pools as slots: the exact number would have to come from the host.
    zeros_S = torch.zeros_like(counts_S)
    experts_S = zeros_S.scatter_add(0, pool_of_slot_S, torch.ones_like(counts_S))[pool_of_slot_S]
    rows_S = zeros_S.scatter_add(0, pool_of_slot_S, counts_S)[pool_of_slot_S]
    mean_S = rows_S.double() / experts_S
    limit_S = torch.round(capacity_factor * mean_S).long().clamp(min=MINIMUM)
    before_PS = counts_PS.cumsum(0) - counts_PS
    return torch.minimum((limit_S - before_PS).clamp(min=0), counts_PS)


def keep_mask(order_N: Tensor, counts_S: Tensor, kept_S: Tensor) -> Tensor:
    """Which rows, sorted by slot, are among the first ``kept_S`` of their slot, bool ``[N]``."""
    starts_S = counts_S.cumsum(0) - counts_S
    rows = torch.arange(order_N.shape[0], device=order_N.device)
    slot_N = torch.arange(counts_S.shape[0], device=order_N.device).repeat_interleave(
        counts_S, output_size=order_N.shape[0]
    )
    return rows - starts_S[slot_N] < kept_S[slot_N]


def compress(order_N: Tensor, mask_N: Tensor, num_kept: int) -> Tensor:
    """``order_N[mask_N]`` for a number of kept rows that the host knows already, ``[R]``: no further sync."""
    # Rows that are dropped are all written behind the end and cut off.
    target_N = torch.where(mask_N, mask_N.cumsum(0) - 1, num_kept)
    return order_N.new_empty(num_kept + 1).scatter_(0, target_N, order_N)[:num_kept]
