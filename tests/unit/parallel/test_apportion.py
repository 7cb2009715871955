"""Dealing and packing: tables by hand, and a slow search as oracle."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmoe.parallel.apportion import deal, pack, quantize

weights_lists = st.lists(st.integers(1, 20), min_size=1, max_size=7)


@pytest.mark.parametrize(
    ("weights", "num_seats", "seats"),
    [
        ([5], 3, [3]),
        ([2, 1, 1], 4, [2, 1, 1]),
        ([1, 1], 3, [2, 1]),  # shares 1.5 and 1.5: a tie goes to the earlier
        ([1, 2, 1], 3, [1, 1, 1]),  # shares .75 1.5 .75: floors 1 (raised) 1 1 (raised) are all
        ([3, 1], 8, [6, 2]),
        ([5, 3, 2], 7, [4, 2, 1]),  # shares 3.5 2.1 1.4: floors 3 2 1, the seat left goes to .5
        ([97, 1, 1, 1], 4, [1, 1, 1, 1]),  # shares 3.88 .04 .04 .04: three raised to 1, taken from the 3
        ([90, 5, 3, 2], 8, [5, 1, 1, 1]),  # shares 7.2 .4 .24 .16
    ],
)
def test_seats_follow_weights_by_largest_remainder(weights: list[int], num_seats: int, seats: list[int]) -> None:
    assert deal(weights, num_seats) == seats


@given(weights_lists, st.integers(0, 30))
def test_every_seat_is_dealt_and_none_goes_without(weights: list[int], extra: int) -> None:
    seats = deal(weights, len(weights) + extra)
    assert sum(seats) == len(weights) + extra
    assert min(seats) >= 1


@given(weights_lists, st.integers(0, 30))
def test_a_heavier_weight_never_has_fewer_seats(weights: list[int], extra: int) -> None:
    pairs = list(zip(weights, deal(weights, len(weights) + extra), strict=True))
    assert all(a_seats >= b_seats for a, a_seats in pairs for b, b_seats in pairs if a > b)


@pytest.mark.parametrize(
    ("weights", "num_bins", "sizes"),
    [
        ([1, 1, 1], 1, [3]),
        ([1, 1, 1, 1], 2, [2, 2]),
        ([3, 1, 1, 1], 2, [1, 3]),
        ([1, 1, 1, 3], 2, [3, 1]),
        ([1, 1, 1], 2, [2, 1]),  # 2,1 and 1,2 cost the same: the last bin is the shorter
        ([4, 1, 1, 1, 5], 3, [1, 3, 1]),
    ],
)
def test_bins_are_balanced(weights: list[int], num_bins: int, sizes: list[int]) -> None:
    assert [len(run) for run in pack(weights, num_bins)] == sizes


@given(weights_lists, st.data())
@settings(max_examples=60)
def test_no_other_cut_is_better(weights: list[int], data: st.DataObject) -> None:
    num_bins = data.draw(st.integers(1, len(weights)))
    runs = pack(weights, num_bins)
    assert [i for run in runs for i in run] == list(range(len(weights)))
    assert all(runs)

    def cost(borders: tuple[int, ...]) -> int:
        edges = [0, *borders, len(weights)]
        return sum(sum(weights[a:b]) ** 2 for a, b in pairwise(edges))

    every_cut = combinations(range(1, len(weights)), num_bins - 1)
    assert cost(tuple(run.start for run in runs[1:])) == min(map(cost, every_cut))


def test_rounding_noise_and_scale_make_no_difference() -> None:
    assert 0.1 + 0.2 != 0.3
    assert len(set(quantize([0.1 + 0.2, 0.3]))) == 1
    assert quantize([2.0, 1.0, 5.0]) == quantize([0.02, 0.01, 0.05])


def test_a_vanishing_weight_still_counts() -> None:
    assert quantize([1e-30, 1.0])[0] == 1
