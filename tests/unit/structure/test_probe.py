"""The probe set: stratified, fixed, a function of sizes and seed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmoe.errors import ConfigError, DataError
from distmoe.structure.probe import select_probe

PINNED = ((0, 500), (0, 737), (0, 823), (1, 105), (1, 760), (1, 858))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.data())
def test_examples_are_valid_different_and_dealt_as_equally_as_sizes_allow(sizes: list[int], data: st.DataObject):
    if sum(sizes) < 4:
        sizes.append(4)
    num_examples = data.draw(st.integers(4, sum(sizes)))
    probe = select_probe(sizes, num_examples=num_examples, seed=3)
    assert len(set(probe.ids)) == num_examples
    assert list(probe.ids) == sorted(probe.ids)
    assert all(0 <= example < sizes[task] for task, example in probe.ids)
    count = Counter(task for task, _ in probe.ids)
    not_exhausted = [count[task] for task, size in enumerate(sizes) if count[task] < size]
    largest = max(count.values())
    assert all(largest - 1 <= own <= largest for own in not_exhausted)


def test_small_tasks_give_all_and_the_remainder_goes_to_the_lowest_ids():
    """14 of (2, 100, 100, 100): 2 from the first, 12 left for three; with 15 the first of them gives one more."""
    for num_examples, expected in ((14, [2, 4, 4, 4]), (15, [2, 5, 4, 4])):
        probe = select_probe([2, 100, 100, 100], num_examples=num_examples, seed=0)
        assert [sum(task == own for own, _ in probe.ids) for task in range(4)] == expected


def test_the_choice_never_changes_between_versions_or_machines():
    probe = select_probe([1000, 1000], num_examples=6, seed=0)
    assert probe.ids == PINNED
    assert probe.sha256 == select_probe([1000, 1000], num_examples=6, seed=0).sha256


def test_seed_and_sizes_are_part_of_the_hash():
    values = [
        select_probe(sizes, num_examples=6, seed=seed).sha256
        for sizes, seed in (([99, 99], 0), ([99, 99], 1), ([99, 100], 0))
    ]
    assert len(set(values)) == 3


def test_a_larger_probe_contains_the_smaller_one():
    small, large = (select_probe([500, 500], num_examples=n, seed=1).ids for n in (10, 40))
    assert set(small) < set(large)


def test_members_are_spread_over_the_data_and_not_the_first_ones():
    examples = [example for _, example in select_probe([10_000], num_examples=400, seed=0).ids]
    assert sum(examples) / 400 == pytest.approx(5000, abs=3 * 10_000 / 12**0.5 / 400**0.5)


def test_a_probe_larger_than_the_data_is_refused():
    with pytest.raises(
        DataError, match=r"larger than the data\n +got: +21 .*\n +expected: at most 20.*\n +remedy: +lower"
    ):
        select_probe([10, 10], num_examples=21, seed=0)


def test_a_probe_too_small_for_unbiased_similarity_is_refused():
    with pytest.raises(ConfigError, match=r"got: +3\n +expected: at least 4"):
        select_probe([10, 10], num_examples=3, seed=0)
