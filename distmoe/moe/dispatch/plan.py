"""What ``dispatch`` tells the pools, and what it tells ``combine``.

Shape letters: T tokens, K choices per token, R rows at this rank's experts, S slots of the block, e experts on this
rank, P ranks of the block, N (token, choice) pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from distmoe.moe.dispatch.rows import RowMap, invert
from distmoe.moe.dispatch.slots import SlotLayout


@dataclass(frozen=True)
class DispatchPlan:
    """Where the rows of one layer and one forward pass are.

    Attributes:
        counts_e: Rows of each expert on this rank, int64, on the rows' device.
        host_counts: The same on the host, when the host had to know.
        dropped: Rows of this rank's tokens that found their expert full, int64 scalar; None without a capacity.
        row_map: Which row copies which item (token, or received token).
        weights_R: Combine weight of each row, float32; differentiable.
    """

    counts_e: Tensor
    host_counts: tuple[int, ...] | None
    dropped: Tensor | None
    row_map: RowMap
    weights_R: Tensor

    def pools(self, rows_RD: Tensor, layout: SlotLayout) -> Iterator[tuple[Tensor, Tensor, tuple[int, ...] | None]]:
        """Rows, counts and host counts of each hosted task group, in hosting order."""
        sizes = layout.local_sizes
        if len(sizes) == 1:
            yield rows_RD, self.counts_e, self.host_counts
            return
        assert self.host_counts is not None, "several pools need their row counts on the host"
        row = slot = 0
        for size in sizes:
            counts = self.host_counts[slot : slot + size]
            yield rows_RD[row : row + sum(counts)], self.counts_e[slot : slot + size], counts
            row, slot = row + sum(counts), slot + size


class Dispatcher(Protocol):
    """The pair that a routed layer calls; ``combine`` takes the plan that its own ``dispatch`` made."""

    layout: SlotLayout

    def dispatch(
        self, x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, *, host_counts: bool
    ) -> tuple[Tensor, Any]: ...

    def combine(self, rows_RD: Tensor, plan: Any) -> Tensor: ...


def pair_map(order_R: Tensor, num_tokens: int, num_choices: int, *, complete: bool) -> RowMap:
    """Row map of (token, choice) pairs in the order ``order_R``; not ``complete``: some pairs have no row."""
    num_pairs = num_tokens * num_choices
    present_TK = None
    if not complete:
        present_N = torch.zeros(num_pairs, dtype=torch.bool, device=order_R.device)
        present_TK = present_N.index_fill_(0, order_R, True).view(num_tokens, num_choices)
    rows_TK = invert(order_R, num_pairs).view(num_tokens, num_choices)
    return RowMap(torch.div(order_R, num_choices, rounding_mode="floor"), rows_TK, present_TK)
