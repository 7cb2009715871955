"""The tree of task groups: canonical, validated, consecutive."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmoe.errors import ConfigError
from distmoe.tasks import TaskGrouping


@st.composite
def nested_partitions(draw: st.DrawFn) -> tuple[int, list[list[list[int]]]]:
    """A random tree: each deeper layer splits some task groups of the one above."""
    num_tasks = draw(st.integers(1, 7))
    partition = [list(range(num_tasks))]
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        colours = draw(st.lists(st.integers(0, 2), min_size=num_tasks, max_size=num_tasks))
        partition = [
            [task for task in task_group if colours[task] == colour]
            for task_group in partition
            for colour in range(3)
            if any(colours[task] == colour for task in task_group)
        ]
        layers.append(partition)
    return num_tasks, layers


@given(nested_partitions(), st.randoms(use_true_random=False))
def test_equal_sharing_gives_equal_values_whatever_the_order(case, rng: random.Random):
    num_tasks, layers = case
    shuffled = [[rng.sample(g, len(g)) for g in rng.sample(partition, len(partition))] for partition in layers]
    one, other = TaskGrouping.from_partitions(num_tasks, layers), TaskGrouping.from_partitions(num_tasks, shuffled)
    assert one == other
    assert hash(one) == hash(other)
    assert one.fingerprint == other.fingerprint


@given(nested_partitions())
def test_task_groups_are_consecutive_in_tree_order_and_children_inside_parents(case):
    grouping = TaskGrouping.from_partitions(*case)
    order = grouping.task_order
    assert sorted(order) == list(range(grouping.num_tasks))
    for layer, partition in enumerate(grouping.layers):
        laid_out = [sorted(order.index(task) for task in task_group) for task_group in partition]
        assert [position for positions in laid_out for position in positions] == list(range(grouping.num_tasks))
        if layer:
            parents = [set(task_group) for task_group in grouping.layers[layer - 1]]
            assert all(any(set(task_group) <= parent for parent in parents) for task_group in partition)


@given(nested_partitions())
def test_tables_agree_with_membership_and_json_returns_the_same_value(case):
    grouping = TaskGrouping.from_partitions(*case)
    for layer, partition in enumerate(grouping.layers):
        assert all(task in partition[index] for task, index in enumerate(grouping.table(layer)))
        assert grouping.num_task_groups(layer) == len(partition)
    assert TaskGrouping.from_json(json.loads(json.dumps(grouping.to_json()))) == grouping


def test_a_hand_worked_tree():
    """Layer 0: {0,1,2,3}; layer 1: {0,2} {1,3}; layer 2: {0} {2} {1,3}. Tree order 0 2 1 3."""
    grouping = TaskGrouping.from_partitions(4, [[[3, 1, 2, 0]], [[1, 3], [2, 0]], [[1, 3], [2], [0]]])
    assert grouping.layers == (((0, 1, 2, 3),), ((0, 2), (1, 3)), ((0,), (2,), (1, 3)))
    assert grouping.task_order == (0, 2, 1, 3)
    assert grouping.table(2) == (0, 2, 1, 2)


def test_the_two_ends_of_sharing():
    assert TaskGrouping.one_group(3, 2).layers == (((0, 1, 2),),) * 2
    assert TaskGrouping.one_per_task(3, 2).layers == (((0,), (1,), (2,)),) * 2
    assert TaskGrouping.uniform(3, 1, [[2], [0, 1]]).layers == (((0, 1), (2,)),)


@pytest.mark.parametrize(
    "partition",
    [[[0, 1]], [[0, 1], [1, 2]], [[0, 1, 2], []], [[0, 1, 3]], [[0, 0, 1, 2]]],
    ids=["missing", "twice", "empty", "out of range", "repeated"],
)
def test_what_is_not_a_partition_is_refused(partition):
    with pytest.raises(ConfigError, match=r"routed layer 1: every task[\s\S]*tasks 0\.\.2, each once"):
        TaskGrouping.from_partitions(3, [[[0, 1, 2]], partition])


def test_a_deeper_layer_may_not_join_what_a_shallower_one_split():
    with pytest.raises(ConfigError, match=r"routed layer 1 joins tasks that layer 0 has split"):
        TaskGrouping.from_partitions(3, [[[0, 1], [2]], [[0, 2], [1]]])
