"""Dealing seats by weight and packing a row of items into bins: the integer arithmetic below ``place``.

Weights become integers first, so that ties are ties on every machine: mixture weights come out of ``pow``, whose last
bit differs between maths libraries, and a placement that differs between two nodes is a hang.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

_RESOLUTION = 2**40  # parts of the total weight; far above float noise (2**-52 each), far below a real difference


def quantize(weights: Sequence[float]) -> list[int]:
    """Returns each weight in ``1/2**40`` of their sum, at least 1; differences by rounding or scale are gone."""
    total = sum(weights)
    return [max(1, round(weight / total * _RESOLUTION)) for weight in weights]


def deal(weights: Sequence[int], num_seats: int) -> list[int]:
    """Deals seats in proportion to weight by largest remainder, at least one each.

    Args:
        weights: Positive integers, at most ``num_seats`` of them.
        num_seats: Seats to deal; all are dealt.

    Returns:
        Seats of each weight. Ties go to the earlier one. Weights too small for a seat get theirs from whoever is
        furthest above its exact share.
    """
    assert 0 < len(weights) <= num_seats, "more weights than seats: pack instead"
    total = sum(weights)
    shares = [weight * num_seats for weight in weights]  # in units of 1/total seats: exact
    seats = [max(1, share // total) for share in shares]

    def missing(index: int) -> int:
        return shares[index] - seats[index] * total

    for _ in range(num_seats - sum(seats)):
        seats[max(range(len(seats)), key=lambda i: (missing(i), -i))] += 1
    for _ in range(sum(seats) - num_seats):
        richer = [i for i in range(len(seats)) if seats[i] > 1]
        seats[min(richer, key=lambda i: (missing(i), -i))] -= 1
    return seats


def pack(weights: Sequence[int], num_bins: int) -> list[range]:
    """Cuts a row of items into ``num_bins`` consecutive, non-empty runs of nearly equal weight.

    Minimises the sum of squared bin weights. Every block of ranks draws the same number of examples, so a block of
    weight ``w`` corrects its losses by a factor proportional to ``w``: this sum is the variance of that correction.

    Args:
        weights: Positive integers, at least ``num_bins`` of them.
        num_bins: Bins, at least one.

    Returns:
        The items of each bin, in order. Among equal cuts the one with the shortest last bins.
    """
    assert 0 < num_bins <= len(weights), "fewer items than bins: deal instead"
    ends = [0, *accumulate(weights)]
    num_items = len(weights)
    # cost[b][i]: best sum of squares of the first i items in b bins; cut[b][i]: where its last bin begins.
    impossible = ends[-1] ** 2 + 1
    cost = [[0] + [impossible] * num_items]
    cut: list[list[int]] = [[0] * (num_items + 1)]
    for bins in range(1, num_bins + 1):
        cost.append([impossible] * (num_items + 1))
        cut.append([0] * (num_items + 1))
        for stop in range(bins, num_items - (num_bins - bins) + 1):
            begins = range(bins - 1, stop)
            best = min(begins, key=lambda i: (cost[bins - 1][i] + (ends[stop] - ends[i]) ** 2, -i))
            cost[bins][stop] = cost[bins - 1][best] + (ends[stop] - ends[best]) ** 2
            cut[bins][stop] = best
    runs: list[range] = []
    stop = num_items
    for bins in range(num_bins, 0, -1):
        runs.append(range(cut[bins][stop], stop))
        stop = runs[-1].start
    return runs[::-1]
