"""A single rank exchanges nothing; real exchanges are in tests/distributed."""

from __future__ import annotations

import torch

from distmoe.parallel.all_to_all import all_to_all, exchange_counts
from distmoe.parallel.traffic import Traffic, TrafficCounter


def test_alone_the_rows_themselves_come_back() -> None:
    rows, counts, traffic = torch.randn(3, 2, requires_grad=True), torch.tensor([[1, 2]]), TrafficCounter()
    received = all_to_all(rows, send_counts=[3], receive_counts=[3], process_group=None, traffic=traffic, tag="x")
    assert received is rows
    assert exchange_counts(counts, process_group=None, traffic=traffic) is counts
    assert traffic.read() == Traffic()
