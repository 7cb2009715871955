"""Which dispatcher a layer needs."""

from __future__ import annotations

from distmoe.moe.dispatch.all_to_all import AllToAllDispatcher
from distmoe.moe.dispatch.deduplicated import DeduplicatedDispatcher
from distmoe.moe.dispatch.exchange import Exchange
from distmoe.moe.dispatch.local import LocalDispatcher
from distmoe.moe.dispatch.plan import Dispatcher
from distmoe.moe.dispatch.slots import SlotLayout


def build_dispatcher(
    layout: SlotLayout,
    exchange: Exchange | None,
    *,
    top_k: int,
    capacity_factor: float | None = None,
    deduplicate: bool = False,
) -> Dispatcher:
    """Returns the dispatcher of a block: without exchange everything stays on the rank.

    Args:
        layout: Slots of the block.
        exchange: Process group of the block; None for a single rank.
        top_k: With one expert per token there is nothing to de-duplicate.
        capacity_factor: None: dropless.
        deduplicate: One row per (token, rank) instead of per (token, expert).
    """
    if exchange is None:
        return LocalDispatcher(layout, capacity_factor=capacity_factor)
    if deduplicate and top_k > 1:
        return DeduplicatedDispatcher(layout, exchange, capacity_factor=capacity_factor)
    return AllToAllDispatcher(layout, exchange, capacity_factor=capacity_factor)
