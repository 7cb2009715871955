"""Means of weights: exact where they must be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distmoe.seed import generator
from distmoe.structure.merging import shares_of, weighted_mean


@given(st.lists(st.integers(1, 10**12), min_size=2, max_size=9), st.sampled_from([torch.float32, torch.float64]))
def test_equal_tensors_merge_to_exactly_themselves_whatever_the_loads(loads: list[int], dtype: torch.dtype):
    tensor = torch.randn(7, 5, generator=generator(0, "w"), dtype=dtype)
    assert torch.equal(weighted_mean([tensor] * len(loads), shares_of(loads)), tensor)


def test_shares_follow_the_loads():
    assert shares_of([30, 10]) == (0.75, 0.25)
    assert math.fsum(shares_of([1, 2, 3, 10**15])) == pytest.approx(1.0, abs=1e-15)


def test_the_weighted_mean_by_hand():
    """0.75 * 4 + 0.25 * 8 = 5."""
    merged = weighted_mean([torch.tensor([4.0]), torch.tensor([8.0])], (0.75, 0.25))
    assert merged.item() == 5.0
    assert merged.dtype == torch.float32


def test_the_mean_is_rounded_once():
    """In float32, 1 + 2^-24 is 1: adding three such terms one by one would lose them."""
    tiny = 2.0**-24
    tensors = [torch.tensor([1.0 + shift], dtype=torch.float64) for shift in (0.0, 4 * tiny, 8 * tiny)]
    exact = sum(tensors) / 3
    assert torch.equal(weighted_mean([t.float() for t in tensors], shares_of([1, 1, 1])), exact.float())
