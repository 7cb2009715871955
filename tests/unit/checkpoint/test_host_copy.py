from __future__ import annotations

import torch

from distmoe.checkpoint.fragments import Fragment
from distmoe.checkpoint.global_view import replicated
from distmoe.checkpoint.host_copy import HostCopy


def fragment(data: torch.Tensor, *, lo: int = 0) -> Fragment:
    return Fragment("fp32/w", replicated("w", (8,)), lo, data)


def test_the_copy_keeps_its_numbers_while_training_goes_on() -> None:
    data, host = torch.arange(4.0), HostCopy()
    host.take([fragment(data, lo=2)])
    data.zero_()
    [copied] = host.fragments
    assert (copied.key, copied.lo, copied.data.tolist()) == ("fp32/w", 2, [0.0, 1.0, 2.0, 3.0])


def test_the_next_copy_reuses_memory_where_shape_and_type_allow() -> None:
    host = HostCopy()
    host.take([fragment(torch.zeros(4)), fragment(torch.zeros(3), lo=4)])
    first, second = (copied.data.data_ptr() for copied in host.fragments)
    host.take([fragment(torch.ones(4)), fragment(torch.ones(3, dtype=torch.float64), lo=4)])
    assert host.fragments[0].data.data_ptr() == first
    assert host.fragments[1].data.data_ptr() != second
    assert [copied.data.sum().item() for copied in host.fragments] == [4.0, 3.0]


def test_a_rank_that_owns_nothing_of_a_tensor_copies_nothing() -> None:
    host = HostCopy()
    host.take([fragment(torch.empty(0))])
    assert host.fragments[0].data.numel() == 0
