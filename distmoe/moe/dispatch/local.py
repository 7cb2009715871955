"""Dispatch on one rank: sort the rows by expert, no collective.

Shape letters: T tokens, K choices per token, D model width, R rows.
"""

from __future__ import annotations

from torch import Tensor

from distmoe.moe.dispatch.plan import DispatchPlan, pair_map
from distmoe.moe.dispatch.rows import collect, spread
from distmoe.moe.dispatch.selection import select
from distmoe.moe.dispatch.slots import SlotLayout


class LocalDispatcher:
    """All experts that the rank's tokens may choose are on this rank.

    With one pool, no capacity and the grouped matmul, the host never waits for the device.

    Args:
        layout: Slots of the block, which is this rank alone.
        capacity_factor: None: dropless.
    """

    def __init__(self, layout: SlotLayout, *, capacity_factor: float | None = None) -> None:
        assert layout.ep_size == 1, "a block of several ranks needs an exchange"
        self.layout = layout
        self.capacity_factor = capacity_factor

    def dispatch(
        self, x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, *, host_counts: bool
    ) -> tuple[Tensor, DispatchPlan]:
        """Rows sorted by slot.

        Args:
            x_TD: Tokens; T may be 0.
            slots_TK: Slot of each choice, int64.
            weights_TK: Combine weights, float32, differentiable.
            host_counts: Whether the pools want their counts on the host (one sync).

        Returns:
            ``[R, D]`` and the plan for :meth:`combine`.
        """
        selection = select(
            slots_TK,
            self.layout,
            capacity_factor=self.capacity_factor,
            exchange_counts=lambda counts_PX: counts_PX,
        )
        dropping = selection.kept_N is not None
        counts = None
        if host_counts or dropping or len(self.layout.pool_sizes) > 1:
            counts = tuple(selection.sent_S.tolist())
        order_R = selection.order_R(sum(counts or ()))
        row_map = pair_map(order_R, *slots_TK.shape, complete=not dropping)
        weights_R = weights_TK.flatten().index_select(0, order_R)
        plan = DispatchPlan(selection.sent_S, counts, selection.dropped, row_map, weights_R)
        return spread(x_TD, row_map), plan

    def combine(self, rows_RD: Tensor, plan: DispatchPlan) -> Tensor:
        """Weighted sum of each token's rows, ``[T, D]``."""
        return collect(rows_RD, plan.weights_R, plan.row_map)
