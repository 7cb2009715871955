"""Every tensor of the new model has a source, and no tensor of the old one is lost."""

from __future__ import annotations

import pytest

from distmoe.errors import CheckpointError
from distmoe.structure.carrying import expert_sources, name_sources, task_group_sources
from distmoe.structure.plan import Merge, apply_merges
from distmoe.tasks import TaskGrouping

PREFIXES = ["encoder.layers.1.feed_forward.pools.g", "encoder.layers.3.feed_forward.pools.g"]
SIZES = [[2] * 4, [1] * 4]  # experts of each task group before, per routed layer
KEYS = ("w_in", "b_in", "w_out", "b_out")
BEFORE = TaskGrouping.one_per_task(4, 2)
# Joining 0 and 3 at the first layer changes tree order to 0, 3, 1, 2: task groups of both layers are renumbered.
AFTER = apply_merges(BEFORE, [Merge(0, ((0,), (3,)))])


def names(grouping: TaskGrouping) -> list[str]:
    pools = [
        f"{prefix}{index}.{key}"
        for prefix, partition in zip(PREFIXES, grouping.layers, strict=True)
        for index in range(len(partition))
        for key in KEYS
    ]
    return ["pooler.weight", "encoder.layers.1.feed_forward.gate.weight", *pools]


def test_task_groups_are_followed_by_their_tasks_although_their_indices_shift():
    assert AFTER.layers == (((0, 3), (1,), (2,)), ((0,), (3,), (1,), (2,)))
    assert task_group_sources(BEFORE, AFTER) == (((0, 3), (1,), (2,)), ((0,), (3,), (1,), (2,)))


def test_names_are_carried_or_merged():
    sources = name_sources(names(BEFORE), names(AFTER), BEFORE, AFTER, prefixes=PREFIXES)
    assert list(sources) == sorted(names(AFTER))
    assert sources[f"{PREFIXES[0]}0.w_in"] == (f"{PREFIXES[0]}0.w_in", f"{PREFIXES[0]}3.w_in")
    assert sources[f"{PREFIXES[0]}2.b_out"] == (f"{PREFIXES[0]}2.b_out",)
    assert sources[f"{PREFIXES[1]}1.w_in"] == (f"{PREFIXES[1]}3.w_in",)
    assert sources["pooler.weight"] == ("pooler.weight",)
    merged = [name for name, members in sources.items() if len(members) > 1]
    assert len(merged) == len(KEYS)


def test_layer_ten_is_not_mistaken_for_layer_one():
    prefixes = ["layers.1.g", "layers.10.g"]
    old = [f"{prefix}{index}.w" for prefix in prefixes for index in range(4)]
    new = [f"layers.1.g{index}.w" for index in range(3)] + [f"layers.10.g{index}.w" for index in range(4)]
    sources = name_sources(old, new, BEFORE, AFTER, prefixes=prefixes)
    assert sources["layers.10.g1.w"] == ("layers.10.g3.w",)


def test_task_groups_with_two_digits_are_read_as_one_number():
    before = TaskGrouping.one_per_task(13, 1)
    after = apply_merges(before, [Merge(0, ((0,), (1,)))])
    old, new = ([f"layers.1.g{index}.w" for index in range(count)] for count in (13, 12))
    sources = name_sources(old, new, before, after, prefixes=["layers.1.g"])
    assert sources["layers.1.g0.w"] == ("layers.1.g0.w", "layers.1.g1.w")
    assert sources["layers.1.g11.w"] == ("layers.1.g12.w",)


def test_a_tensor_without_a_source_is_an_error():
    with pytest.raises(CheckpointError, match=r"got: +no source: adapter\.weight; left over: none"):
        name_sources(names(BEFORE), [*names(AFTER), "adapter.weight"], BEFORE, AFTER, prefixes=PREFIXES)


def test_a_tensor_that_nobody_takes_is_an_error():
    with pytest.raises(CheckpointError, match=r"left over: a, b, c and 1 more"):
        name_sources([*names(BEFORE), *"abcd"], names(AFTER), BEFORE, AFTER, prefixes=PREFIXES)


def test_a_grouping_that_splits_is_an_error():
    with pytest.raises(CheckpointError, match="not made by joining"):
        task_group_sources(AFTER, BEFORE)
    with pytest.raises(CheckpointError, match="not made by joining"):
        task_group_sources(BEFORE, TaskGrouping.one_per_task(4, 3))


def test_parameters_shrink_by_exactly_the_members_that_are_gone():
    """One feed-forward part of width 24 and 96 units has 2 * 24 * 96 + 96 + 24 = 4,728 parameters; three become one."""
    size = {"w_in": 24 * 96, "b_in": 96, "w_out": 24 * 96, "b_out": 24}

    def parameters(grouping: TaskGrouping) -> int:
        return sum(size.get(name.rsplit(".", 1)[1], 1000) for name in names(grouping))

    merged = apply_merges(BEFORE, [Merge(0, ((0,), (2,), (3,)))])
    assert parameters(BEFORE) - parameters(merged) == 2 * 4_728 == 234_180 - 224_724


def test_joined_task_groups_keep_all_experts_when_pooled_and_one_set_when_merged():
    """Two experts per task group, numbered over the layer: task 0 has 0 and 1, task 3 has 6 and 7."""
    pooled = expert_sources(BEFORE, AFTER, SIZES, mode="pool")
    assert pooled[0] == ((0,), (1,), (6,), (7,), (2,), (3,), (4,), (5,))
    merged = expert_sources(BEFORE, AFTER, SIZES, mode="merge")
    assert merged[0] == ((0, 6), (1, 7), (2,), (3,), (4,), (5,))
    assert merged[1] == pooled[1] == ((0,), (3,), (1,), (2,))
