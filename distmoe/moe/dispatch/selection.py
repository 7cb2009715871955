"""Which rows travel, before any of them does: order, counts, capacity, and the one transfer to the host.

Shape letters: T tokens, K choices per token, N (token, choice) pairs, S slots of the block, P ranks of the block,
e experts on this rank, X further counts per rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distmoe.moe.dispatch.capacity import compress, keep_mask, kept_rows
from distmoe.moe.dispatch.slots import SlotLayout, sort_by_slot

ExchangeCounts = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Selection:
    """Rows that this rank sends and receives, still as device numbers.

    Attributes:
        order_N: Flat pair index of each row, sorted by slot, inside a slot by token.
        kept_N: Which of them travel; None: all.
        sent_S: How many go to each slot.
        received_Pe: How many come from each rank for each expert on this rank.
        extra_P: The numbers that each rank sent along for this rank; None if none were.
        dropped: Pairs of this rank's tokens that found no place; None without a capacity.
    """

    order_N: Tensor
    kept_N: Tensor | None
    sent_S: Tensor
    received_Pe: Tensor
    extra_P: Tensor | None
    dropped: Tensor | None

    def order_R(self, num_rows: int) -> Tensor:
        """Pair index of each row that travels; ``num_rows`` is the sum of ``sent_S``, known to the host by now."""
        return self.order_N if self.kept_N is None else compress(self.order_N, self.kept_N, num_rows)


def select(
    slots_TK: Tensor,
    layout: SlotLayout,
    *,
    capacity_factor: float | None,
    exchange_counts: ExchangeCounts,
    extra_P: Tensor | None = None,
) -> Selection:
    """Sorts the pairs and tells every rank of the block what it will get.

    Args:
        slots_TK: Slot of each (token, choice), int64.
        layout: Slots of the block.
        capacity_factor: None keeps every row.
        exchange_counts: Row ``p`` of the ``[P, X]`` table goes to rank ``p``; row ``p`` of the result came from it.
        extra_P: One more number for each rank, sent in the same message.
    """
    ranks, per_rank = layout.ep_size, layout.slots_per_rank
    order_N, counts_S = sort_by_slot(slots_TK, layout.num_slots)
    extra_columns = [] if extra_P is None else [extra_P[:, None]]
    if capacity_factor is None:
        received = exchange_counts(torch.cat([counts_S.view(ranks, per_rank), *extra_columns], dim=1))
        extra = None if extra_P is None else received[:, per_rank]
        return Selection(order_N, None, counts_S, received[:, :per_rank], extra, None)
    # The limit depends on the rows of the whole block and on who comes first: every rank sends its whole table.
    mine_X = torch.cat([counts_S, *([] if extra_P is None else [extra_P])])
    everyone_PX = exchange_counts(mine_X.expand(ranks, -1).contiguous())
    pool_of_slot_S = layout.pool_of_slot(slots_TK.device)
    kept_PS = kept_rows(everyone_PX[:, : layout.num_slots], pool_of_slot_S, capacity_factor)
    kept_S = kept_PS[layout.ep_rank]
    first = layout.ep_rank * per_rank
    return Selection(
        order_N=order_N,
        kept_N=keep_mask(order_N, counts_S, kept_S),
        sent_S=kept_S,
        received_Pe=kept_PS[:, first : first + per_rank],
        extra_P=None if extra_P is None else everyone_PX[:, layout.num_slots + layout.ep_rank],
        dropped=(counts_S - kept_S).sum(),
    )
