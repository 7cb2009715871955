"""The grouping rule against brute force, by hand, and at its borders."""

from __future__ import annotations

from fractions import Fraction
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmoe.errors import ConfigError
from distmoe.structure.search import find_clearest, find_partition, set_partitions
from distmoe.structure.similarity import UNIT, Similarity

BELL = [1, 1, 2, 5, 15, 52, 203]  # number of partitions of 0 .. 6 things


@st.composite
def similarities(draw: st.DrawFn, low: int = 2, high: int = 5) -> Similarity:
    """Random matrices; coarse values make ties frequent."""
    size = draw(st.integers(low, high))
    step = draw(st.sampled_from([1, 100_000, 250_000]))
    rows = [[UNIT] * size for _ in range(size)]
    for first, second in combinations(range(size), 2):
        value = draw(st.integers(-UNIT // 10 // step, UNIT // step)) * step
        rows[first][second] = rows[second][first] = value
    return Similarity(tuple(map(tuple, rows)))


def value_of(similarity: Similarity, partition: list[set[int]]) -> Fraction:
    """V(P) as it is defined: the mean over members of the mean similarity to the others of its set."""
    total = Fraction(0)
    for members in partition:
        for member in members:
            others = members - {member}
            if others:
                total += Fraction(sum(similarity.millionths[member][other] for other in others), len(others))
    return total / similarity.num_members / UNIT


def all_partitions(things: list[int]) -> list[list[set[int]]]:
    """Recursive: the last thing joins each set of a partition of the others, or stays alone."""
    if not things:
        return [[]]
    result = []
    for partition in all_partitions(things[:-1]):
        result.append([*partition, {things[-1]}])
        for index in range(len(partition)):
            result.append([members | {things[-1]} if i == index else members for i, members in enumerate(partition)])
    return result


@settings(max_examples=300, deadline=None)
@given(similarities(), st.integers(1, 99))
def test_the_exact_search_is_brute_force_over_all_partitions(similarity: Similarity, percent: int):
    threshold = percent / 100
    partitions = all_partitions(list(range(similarity.num_members)))
    best = Fraction(0)
    for at_most in range(1, similarity.num_members):
        best = max(value_of(similarity, partition) for partition in partitions if len(partition) <= at_most)
        if best >= Fraction(percent, 100):
            break
    found = find_partition(similarity, threshold=threshold)
    sets = [set(members) for members in found.partition]
    assert sorted(chain(*found.partition)) == list(range(similarity.num_members))
    assert value_of(similarity, sets) == best
    assert found.value == pytest.approx(float(best), abs=1e-15)
    expected = [
        tuple(sorted(members))
        for members in sets
        if len(members) > 1
        and value_of(similarity, [members]) * similarity.num_members / len(members) > Fraction(percent, 100)
    ]
    assert sorted(found.accepted) == sorted(expected)


@pytest.mark.parametrize("size", range(1, 7))
def test_every_partition_is_enumerated_once(size: int):
    partitions = list(set_partitions(size))
    assert len(partitions) == len(set(partitions)) == BELL[size]
    assert {frozenset(map(frozenset, p)) for p in all_partitions(list(range(size)))} == {
        frozenset(map(frozenset, p)) for p in partitions
    }


def matrix(size: int, pairs: dict[tuple[int, int], float], other: float = 0.0) -> Similarity:
    return Similarity.from_values(
        [[1.0 if i == j else pairs.get((min(i, j), max(i, j)), other) for j in range(size)] for i in range(size)]
    )


def test_two_clusters_by_hand():
    """01 at 0.9, 23 at 0.85, across 0.1. One set: V = (2 * 0.9 + 2 * 0.85 + 8 * 0.1) / 12 = 0.358; two: 0.875."""
    similarity = matrix(4, {(0, 1): 0.9, (2, 3): 0.85}, 0.1)
    found = find_partition(similarity, threshold=0.8)
    assert found.partition == found.accepted == ((0, 1), (2, 3))
    assert found.value == pytest.approx(0.875, abs=1e-15)


def test_a_low_threshold_stops_at_one_set():
    similarity = matrix(4, {(0, 1): 0.9, (2, 3): 0.85}, 0.1)
    found = find_partition(similarity, threshold=0.3)
    assert found.accepted == ((0, 1, 2, 3),)
    assert found.value == pytest.approx(4.3 / 12, abs=1e-6)


def test_the_last_partition_is_kept_when_none_reaches_the_threshold():
    """Only 01 is similar: the best partition into three is 01|2|3, V = 0.45, below 0.8, but 01 itself passes."""
    found = find_partition(matrix(4, {(0, 1): 0.9}), threshold=0.8)
    assert found.partition == ((0, 1), (2,), (3,))
    assert found.value == pytest.approx(0.45)
    assert found.accepted == ((0, 1),)


@pytest.mark.parametrize("exact_up_to", [0, 5])
def test_a_similarity_equal_to_the_threshold_is_not_accepted(exact_up_to: int):
    at = find_partition(matrix(2, {(0, 1): 0.8}), threshold=0.8, exact_up_to=exact_up_to)
    above = find_partition(matrix(2, {(0, 1): 0.800001}), threshold=0.8, exact_up_to=exact_up_to)
    assert (at.accepted, above.accepted) == ((), ((0, 1),))


def test_average_linkage_does_not_join_at_the_threshold():
    assert find_partition(matrix(2, {(0, 1): 0.8}), threshold=0.8, exact_up_to=0).partition == ((0,), (1,))


@pytest.mark.parametrize("exact_up_to", [0, 5])
def test_ties_go_to_the_lowest_members(exact_up_to: int):
    """01 and 12 are equally similar, 0 and 2 are not: 1 goes with 0."""
    similarity = matrix(3, {(0, 1): 0.9, (1, 2): 0.9})
    assert find_partition(similarity, threshold=0.8, exact_up_to=exact_up_to).partition == ((0, 1), (2,))


@settings(max_examples=150, deadline=None)
@given(similarities(low=3, high=9), st.integers(1, 99))
def test_average_linkage_accepts_exactly_the_sets_it_joined(similarity: Similarity, percent: int):
    found = find_partition(similarity, threshold=percent / 100, exact_up_to=0)
    assert sorted(chain(*found.partition)) == list(range(similarity.num_members))
    assert found.accepted == tuple(members for members in found.partition if len(members) > 1)
    for first, second in combinations(found.partition, 2):
        across = [similarity.millionths[a][b] for a in first for b in second]
        assert sum(across) <= percent * UNIT // 100 * len(across)


def test_average_linkage_finds_nine_tasks_in_three_clusters():
    clusters = [(0, 4, 7), (1, 3, 8), (2, 5, 6)]
    pairs = {pair: 0.9 for cluster in clusters for pair in combinations(cluster, 2)}
    found = find_partition(matrix(9, pairs, 0.5), threshold=0.8)
    assert found.accepted == tuple(clusters)


def test_average_linkage_agrees_with_scipy_where_there_are_no_ties():
    import numpy as np
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    for seed in range(20):
        noise = np.random.default_rng(seed).random((8, 8))
        values = (noise + noise.T) / 2
        np.fill_diagonal(values, 1.0)
        similarity = Similarity.from_values(values)
        labels = fcluster(linkage(squareform(1 - similarity.values(), checks=False), "average"), 1 - 0.55, "distance")
        expected = {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels)}
        assert {frozenset(s) for s in find_partition(similarity, threshold=0.55).partition} == expected


@settings(max_examples=150, deadline=None)
@given(similarities(high=7), st.lists(st.sets(st.integers(0, 6), min_size=2), max_size=4), st.sampled_from([0, 5]))
def test_banned_sets_are_never_proposed(similarity: Similarity, bans: list[set[int]], exact_up_to: int):
    def banned(members: tuple[int, ...]) -> bool:
        return any(ban <= set(members) for ban in bans)

    found = find_partition(similarity, threshold=0.2, banned=banned, exact_up_to=exact_up_to)
    assert not any(banned(members) for members in found.partition)
    assert sorted(chain(*found.partition)) == list(range(similarity.num_members))


def test_with_everything_banned_nothing_is_accepted():
    found = find_partition(matrix(2, {(0, 1): 0.99}), threshold=0.5, banned=lambda members: True)
    assert (found.partition, found.accepted) == (((0,), (1,)), ())


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_threshold_outside_its_range_is_refused(threshold: float):
    with pytest.raises(ConfigError, match=r"threshold is outside its range\n +got: .*\n +expected: 0 < threshold < 1"):
        find_partition(matrix(2, {(0, 1): 0.9}), threshold=threshold)


def test_of_partitions_with_equal_value_the_finer_one_is_taken():
    """01 and 12 at 0.9, 02 at 0: one set of three has V = (0.45 + 0.9 + 0.45) / 3 = 0.6, 01|2 has 1.8 / 3 = 0.6.

    The set of three would fail the threshold and take 01 with it.
    """
    found = find_partition(matrix(3, {(0, 1): 0.9, (1, 2): 0.9}), threshold=0.8)
    assert found.value == pytest.approx(0.6)
    assert found.accepted == ((0, 1),)


def correlation(similarity: Similarity, partition: tuple[tuple[int, ...], ...]) -> float:
    """Pearson's, between the similarity of two members and whether they are in one set; -1 where one is constant."""
    pairs = list(combinations(range(similarity.num_members), 2))
    values = np.array([similarity.millionths[first][second] for first, second in pairs], dtype=np.float64)
    together = np.array([any(first in one and second in one for one in partition) for first, second in pairs])
    if values.std() == 0 or together.std() == 0:
        return -1.0
    return float(np.corrcoef(values, together)[0, 1])


@settings(max_examples=200, deadline=None)
@given(similarities(high=7))
def test_the_clearest_level_correlates_best_with_the_similarities(similarity: Similarity):
    """The levels are those of the threshold rule at any threshold."""
    found = find_clearest(similarity)
    levels = {
        find_partition(similarity, threshold=percent / 200, exact_up_to=1).partition for percent in range(1, 200, 3)
    }
    assert all(correlation(similarity, level) <= correlation(similarity, found.partition) + 1e-9 for level in levels)


def test_the_clearest_level_is_planted_groups_whatever_is_added_to_all_similarities():
    """Also where two of the groups are more alike than average, which a cut at zero would join."""
    planted = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for shift in (-300_000, 0, 300_000):
        rows = [
            [shift + (400_000 if a == b else 50_000 if {a, b} == {0, 1} else -150_000) for b in planted]
            for a in planted
        ]
        assert find_clearest(Similarity(tuple(map(tuple, rows)))).accepted == ((0, 1, 2), (3, 4, 5), (6, 7, 8))


def test_two_members_and_equal_similarities_have_no_clearest_level():
    for size in (2, 4):
        rows = tuple(tuple(UNIT // 2 for _ in range(size)) for _ in range(size))
        assert find_clearest(Similarity(rows)).accepted == ()


def test_a_banned_set_is_not_joined_at_the_clearest_level():
    rows = [[0, 9, 0, 0], [9, 0, 0, 0], [0, 0, 0, 8], [0, 0, 8, 0]]
    similarity = Similarity(tuple(tuple(value * 100_000 for value in row) for row in rows))
    assert find_clearest(similarity).accepted == ((0, 1), (2, 3))
    assert find_clearest(similarity, banned=lambda members: members == (0, 1)).accepted == ((2, 3),)
