"""Dispatch over the ranks of a block: one row travels per (token, expert).

Shape letters: T tokens, K choices per token, D model width, P ranks of the block, e experts on this rank, S slots of
the block, R rows received.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distmoe.moe.dispatch.exchange import Exchange, Splits, read_counts
from distmoe.moe.dispatch.plan import DispatchPlan, pair_map
from distmoe.moe.dispatch.rows import collect, invert, permute, spread
from distmoe.moe.dispatch.selection import select
from distmoe.moe.dispatch.slots import SlotLayout


@dataclass(frozen=True)
class ExchangePlan(DispatchPlan):
    """A plan whose rows have travelled.

    Attributes:
        splits: Rows sent and received on the way to the experts.
        order_R: For each row in the order of the pools, where it stood on arrival; None: the same place.
        inverse_R: The inverse.
    """

    splits: Splits
    order_R: Tensor | None
    inverse_R: Tensor | None


class AllToAllDispatcher:
    """Sends each rank of the block exactly the rows of its experts, with one exchange for all hosted task groups.

    Args:
        layout: Slots of the block.
        exchange: Its process group.
        capacity_factor: None: dropless.
    """

    def __init__(self, layout: SlotLayout, exchange: Exchange, *, capacity_factor: float | None = None) -> None:
        self.layout, self.exchange = layout, exchange
        self.capacity_factor = capacity_factor

    def dispatch(
        self, x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, *, host_counts: bool = True
    ) -> tuple[Tensor, ExchangePlan]:
        """Rows of this rank's experts, sorted by expert, inside an expert by source rank and token.

        1. sort the (token, choice) pairs by slot, hence by destination;  2. exchange counts;  3. counts to the host
        (the layer's one sync);  4. copy tokens into rows;  5. exchange rows;  6. order them by expert.
        A rank without tokens does all of it.

        Args:
            x_TD: Tokens; T may be 0.
            slots_TK: Slot of each choice, int64.
            weights_TK: Combine weights, float32, differentiable; they stay here.
            host_counts: Ignored: the host knows the counts anyway.

        Returns:
            ``[R, D]`` and the plan for :meth:`combine`.
        """
        selection = select(
            slots_TK,
            self.layout,
            capacity_factor=self.capacity_factor,
            exchange_counts=self.exchange.counts,
        )
        host = read_counts(selection.sent_S, selection.received_Pe)
        order = selection.order_R(sum(host.rows.sent))
        row_map = pair_map(order, *slots_TK.shape, complete=selection.kept_N is None)
        received_RD = self.exchange.rows(spread(x_TD, row_map), host.rows, "tokens")
        order_R = by_expert(selection.received_Pe, sum(host.rows.received))
        inverse_R = None if order_R is None else invert(order_R)
        plan = ExchangePlan(
            counts_e=selection.received_Pe.sum(0),
            host_counts=host.experts_e,
            dropped=selection.dropped,
            row_map=row_map,
            weights_R=weights_TK.flatten().index_select(0, order),
            splits=host.rows,
            order_R=order_R,
            inverse_R=inverse_R,
        )
        return reorder(received_RD, order_R, inverse_R), plan

    def combine(self, rows_RD: Tensor, plan: ExchangePlan) -> Tensor:
        """Weighted sum of each token's rows, ``[T, D]``.

        1. rows back into the order of arrival;  2. reverse exchange;  3. weighted sum at the token's own rank.
        """
        back_RD = reorder(rows_RD, plan.inverse_R, plan.order_R)
        returned_RD = self.exchange.rows(back_RD, plan.splits.reverse(), "outputs")
        return collect(returned_RD, plan.weights_R, plan.row_map)


def by_expert(received_Pe: Tensor, num_rows: int) -> Tensor | None:
    """Order of received rows by (expert, source): rows arrive by (source, expert). None if that is the same."""
    ranks, per_rank = received_Pe.shape
    if per_rank == 1:
        return None
    experts_X = torch.arange(per_rank, device=received_Pe.device).repeat(ranks)
    experts_R = experts_X.repeat_interleave(received_Pe.flatten(), output_size=num_rows)
    return torch.argsort(experts_R, stable=True)


def reorder(rows_RD: Tensor, order_R: Tensor | None, inverse_R: Tensor | None) -> Tensor:
    """:func:`permute`, or nothing to do."""
    if order_R is None or inverse_R is None:
        return rows_RD
    return permute(rows_RD, order_R, inverse_R)
