"""Dispatch over the ranks of a block where a token travels once per destination rank, whatever its number of experts.

The receiver makes the copies for its experts, and sums their weighted outputs before it answers, so each direction
carries at most one row per (token, rank). Drawn: a token chooses experts a, b on rank 0 and c on rank 1::

    exact           x x -> rank 0, x -> rank 1           y_a y_b <- rank 0, y_c <- rank 1
    de-duplicated   x   -> rank 0, x -> rank 1     w_a y_a + w_b y_b <- rank 0, w_c y_c <- rank 1

With each (token, expert) travel 8 bytes: the combine weight, and which of the sent tokens is meant. Expected rows per
token are ``P (1 - C(E - E/P, K) / C(E, K))`` instead of K (performance notes, section 2).

Shape letters: T tokens, K choices per token, D model width, P ranks of the block, e experts on this rank, S slots of
the block, N (token, choice) pairs, R pairs received, U distinct (token, rank) sent, V the same received.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distmoe.moe.dispatch.all_to_all import by_expert, reorder
from distmoe.moe.dispatch.exchange import Exchange, Splits, read_counts
from distmoe.moe.dispatch.plan import DispatchPlan
from distmoe.moe.dispatch.rows import RowMap, collect, invert, spread
from distmoe.moe.dispatch.selection import select
from distmoe.moe.dispatch.slots import SlotLayout


@dataclass(frozen=True)
class DeduplicatedPlan(DispatchPlan):
    """A plan with two maps: ``row_map`` from rows to received tokens, and one from sent tokens to tokens.

    Attributes:
        items_map: Which sent token copies which token.
        splits: Tokens sent and received on the way to the experts.
    """

    items_map: RowMap
    splits: Splits


@dataclass(frozen=True)
class _Distinct:
    """Distinct (token, destination rank) pairs of this rank, in the order (destination, token).

    Attributes:
        rank_TK: Destination of each choice.
        leads_TK: Whether a choice is its token's first one for that destination.
        counts_P: Distinct tokens for each destination.
        order_N: Flat pair index, leading choices first, by (destination, token).
        place_TK: Place among the distinct tokens of the choice's destination.
        starts_P: Where a destination begins.
    """

    rank_TK: Tensor
    leads_TK: Tensor
    counts_P: Tensor
    order_N: Tensor
    place_TK: Tensor
    starts_P: Tensor


class DeduplicatedDispatcher:
    """Like :class:`~distmoe.moe.dispatch.all_to_all.AllToAllDispatcher`, with fewer bytes for ``top_k`` above 1.

    Outputs differ from the exact exchange by rounding only: a token's rows are summed per rank first.

    Args:
        layout: Slots of the block.
        exchange: Its process group.
        capacity_factor: None: dropless. A token all of whose rows for a rank are dropped still travels there.
    """

    def __init__(self, layout: SlotLayout, exchange: Exchange, *, capacity_factor: float | None = None) -> None:
        self.layout, self.exchange = layout, exchange
        self.capacity_factor = capacity_factor

    def dispatch(
        self, x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, *, host_counts: bool = True
    ) -> tuple[Tensor, DeduplicatedPlan]:
        """Rows of this rank's experts, sorted by expert, inside an expert by source rank and token.

        1. sort pairs by slot, find distinct (token, rank);  2. exchange counts of both;  3. counts to the host (the
        layer's one sync);  4. exchange distinct tokens;  5. exchange, per pair, weight and place of its token;
        6. copy received tokens into rows by expert.

        Args and returns as in the exact exchange; the weights travel, and their gradient comes back.
        """
        num_choices = slots_TK.shape[1]
        distinct = _find_distinct(slots_TK, self.layout)
        selection = select(
            slots_TK,
            self.layout,
            capacity_factor=self.capacity_factor,
            exchange_counts=self.exchange.counts,
            extra_P=distinct.counts_P,
        )
        items_received_P = selection.extra_P
        assert items_received_P is not None
        host = read_counts(selection.sent_S, selection.received_Pe, distinct.counts_P, items_received_P)
        assert host.items is not None
        items_map = _items_map(distinct, sum(host.items.sent))
        items_VD = self.exchange.rows(spread(x_TD, items_map), host.items, "tokens")

        order = selection.order_R(sum(host.rows.sent))
        places = distinct.place_TK.flatten().index_select(0, order)
        weights = weights_TK.flatten().index_select(0, order)
        # One message for both: a place is exact in float32 up to 2^24 tokens of one rank.
        pairs_R2 = self.exchange.rows(torch.stack((weights, places.to(weights.dtype)), dim=1), host.rows, "pairs")
        num_rows = sum(host.rows.received)
        starts_P = items_received_P.cumsum(0) - items_received_P
        source_start_R = starts_P.repeat_interleave(selection.received_Pe.sum(1), output_size=num_rows)
        items_R = pairs_R2.detach()[:, 1].long() + source_start_R
        weights_R = pairs_R2[:, 0]
        order_R = by_expert(selection.received_Pe, num_rows)
        if order_R is not None:
            items_R = items_R.index_select(0, order_R)
            weights_R = reorder(weights_R, order_R, invert(order_R))
        row_map = _rows_of_items(items_R, sum(host.items.received), num_choices)
        plan = DeduplicatedPlan(
            counts_e=selection.received_Pe.sum(0),
            host_counts=host.experts_e,
            dropped=selection.dropped,
            row_map=row_map,
            weights_R=weights_R,
            items_map=items_map,
            splits=host.items,
        )
        return spread(items_VD, row_map), plan

    def combine(self, rows_RD: Tensor, plan: DeduplicatedPlan) -> Tensor:
        """Weighted sum of each token's rows, ``[T, D]``.

        1. weighted sum per received token;  2. reverse exchange;  3. sum over ranks at the token's own rank.
        """
        partial_VD = collect(rows_RD, plan.weights_R, plan.row_map)
        partial_UD = self.exchange.rows(partial_VD, plan.splits.reverse(), "outputs")
        return collect(partial_UD, None, plan.items_map)


def _find_distinct(slots_TK: Tensor, layout: SlotLayout) -> _Distinct:
    num_tokens, num_choices = slots_TK.shape
    rank_TK = torch.div(slots_TK, layout.slots_per_rank, rounding_mode="floor")
    same_TKK = rank_TK[:, :, None] == rank_TK[:, None, :]
    leads_TK = ~same_TKK.tril(-1).any(2)
    counts_P = slots_TK.new_zeros(layout.ep_size).scatter_add_(0, rank_TK.flatten(), leads_TK.flatten().long())
    starts_P = counts_P.cumsum(0) - counts_P
    keys_TK = torch.where(leads_TK, rank_TK, layout.ep_size)
    order_N = torch.argsort(keys_TK.flatten(), stable=True)
    place_of_lead_TK = invert(order_N).view(num_tokens, num_choices) - starts_P[rank_TK]
    # argmax of booleans: the first choice for the same rank is the one that leads.
    lead_TK = same_TKK.int().argmax(2) if num_tokens else rank_TK
    return _Distinct(rank_TK, leads_TK, counts_P, order_N, place_of_lead_TK.gather(1, lead_TK), starts_P)


def _items_map(distinct: _Distinct, num_items: int) -> RowMap:
    num_choices = distinct.rank_TK.shape[1]
    items_U = torch.div(distinct.order_N[:num_items], num_choices, rounding_mode="floor")
    rows_TK = distinct.place_TK + distinct.starts_P[distinct.rank_TK]
    return RowMap(items_U, rows_TK, distinct.leads_TK)


def _rows_of_items(items_R: Tensor, num_items: int, num_choices: int) -> RowMap:
    """Row map from the received token of each row: up to ``num_choices`` rows per token."""
    counts_V = items_R.new_zeros(num_items).scatter_add_(0, items_R, torch.ones_like(items_R))
    starts_V = counts_V.cumsum(0) - counts_V
    order_R = torch.argsort(items_R, stable=True)
    sorted_items_R = items_R.index_select(0, order_R)
    choice_R = torch.arange(items_R.shape[0], device=items_R.device) - starts_V[sorted_items_R]
    rows_VK = items_R.new_zeros(num_items, num_choices)
    rows_VK[sorted_items_R, choice_R] = order_R
    choices_K = torch.arange(num_choices, device=items_R.device)
    return RowMap(items_R, rows_VK, choices_K < counts_V[:, None])
