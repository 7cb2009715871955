"""Rows to the experts and back: communication of a routed layer happens here and nowhere else."""

from __future__ import annotations

from distmoe.moe.dispatch.all_to_all import AllToAllDispatcher
from distmoe.moe.dispatch.build import build_dispatcher
from distmoe.moe.dispatch.deduplicated import DeduplicatedDispatcher
from distmoe.moe.dispatch.exchange import Exchange
from distmoe.moe.dispatch.local import LocalDispatcher
from distmoe.moe.dispatch.plan import Dispatcher, DispatchPlan
from distmoe.moe.dispatch.slots import SlotLayout

__all__ = [
    "AllToAllDispatcher",
    "DeduplicatedDispatcher",
    "DispatchPlan",
    "Dispatcher",
    "Exchange",
    "LocalDispatcher",
    "SlotLayout",
    "build_dispatcher",
]
