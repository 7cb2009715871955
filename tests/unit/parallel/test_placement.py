"""Placement: hand-worked tables, and the guarantees of the design for random trees.

Tables write a layer as ``blocks:task groups`` per span, so ``01:0 2:1`` means that blocks 0 and 1 host task group 0 and
block 2 hosts task group 1.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmoe.errors import ParallelError
from distmoe.parallel.placement import Placement, place
from distmoe.parallel.replicas import layouts_of
from distmoe.tasks import TaskGrouping


def _spell(placement: Placement) -> list[str]:
    def spell(ids: tuple[int, ...]) -> str:
        return "".join(map(str, ids))

    return [" ".join(f"{spell(span.blocks)}:{spell(span.task_groups)}" for span in spans) for spans in placement.layers]


def _hosts(placement: Placement) -> dict[tuple[int, ...], tuple[int, ...]]:
    return {host.ranks: host.tasks for host in placement.host_classes}


def _place(partitions: list[list[list[int]]], weights: list[float], num_ranks: int, ep_size: int = 1) -> Placement:
    grouping = TaskGrouping.from_partitions(len(weights), partitions)
    return place(grouping, weights, num_ranks=num_ranks, ep_size=ep_size, mode="partitioned")


def _singles(num_tasks: int) -> list[list[int]]:
    return [[task] for task in range(num_tasks)]


@pytest.mark.parametrize(
    ("weights", "num_ranks", "ep_size", "layer"),
    [
        # one task group: it is everywhere
        ([1.0], 1, 1, "0:0"),
        ([1.0], 4, 2, "01:0"),
        # two task groups, 3:1
        ([3, 1], 1, 1, "0:01"),  # one block hosts all there is
        ([3, 1], 2, 1, "0:0 1:1"),
        ([3, 1], 4, 1, "012:0 3:1"),
        ([3, 1], 8, 2, "012:0 3:1"),  # blocks, not ranks, are dealt
        ([3, 1], 16, 4, "012:0 3:1"),
        ([3, 1], 4, 4, "0:01"),
        # three, 2:1:1
        ([2, 1, 1], 4, 1, "01:0 2:1 3:2"),
        ([2, 1, 1], 4, 2, "0:0 1:12"),  # packed: loads 2 and 2
        ([1, 1, 2], 4, 2, "0:01 1:2"),
        ([2, 1, 1], 8, 1, "0123:0 45:1 67:2"),
        # five, on 1, 2, 4 and 8 blocks
        ([1, 1, 1, 1, 1], 1, 1, "0:01234"),
        ([1, 1, 1, 1, 1], 2, 1, "0:012 1:34"),
        ([1, 1, 1, 1, 1], 16, 4, "0:01 1:2 2:3 3:4"),
        ([4, 1, 1, 1, 1], 8, 1, "0123:0 4:1 5:2 6:3 7:4"),
        ([90, 5, 3, 1, 1], 8, 1, "0123:0 4:1 5:2 6:3 7:4"),  # shares 7.2 .4 .24 .08 .08, at least one each
    ],
)
def test_blocks_follow_weights(weights: list[float], num_ranks: int, ep_size: int, layer: str) -> None:
    assert _spell(_place([_singles(len(weights))], weights, num_ranks, ep_size)) == [layer]


def test_a_shallower_task_group_lives_on_the_blocks_of_its_tasks() -> None:
    """Four blocks of two ranks, equal weights, tree order 0 2 1 3::

    layer 0   {0 1 2 3}            blocks 0123
    layer 1   {0 2}   {1 3}        blocks 01 | 23
    layer 2   {0} {2} {1} {3}      blocks 0 | 1 | 2 | 3
    """
    placement = _place([[[0, 1, 2, 3]], [[0, 2], [1, 3]], _singles(4)], [1, 1, 1, 1], 8, 2)
    assert _spell(placement) == ["0123:0", "01:0 23:1", "0:0 1:1 2:2 3:3"]
    assert _hosts(placement) == {(0, 1): (0,), (2, 3): (2,), (4, 5): (1,), (6, 7): (3,)}


def test_task_groups_that_meet_on_a_block_share_a_span() -> None:
    """Two blocks for four tasks; weights 2 1 1 2 pack {0 1} and {2 3}, but layer 0 keeps {1 2} together::

    block      0        1
    layer 1    {0} {1} | {2} {3}        two spans
    layer 0    {0} {1     2} {3}        {1 2} is on both blocks and ties {0} and {3} to it: one span
    """
    placement = _place([[[0], [1, 2], [3]], _singles(4)], [2, 1, 1, 2], 2)
    assert _spell(placement) == ["01:012", "0:01 1:23"]
    assert _hosts(placement) == {(0,): (0, 1), (1,): (2, 3)}


def test_task_groups_that_do_not_meet_stay_apart() -> None:
    """Three blocks for four tasks, weights 1 1 2 2: {0 1} packed, {2}, {3} alone.

    Layer 0 joins {2 3} only, so block 0 keeps a span of its own there.
    """
    placement = _place([[[0], [1], [2, 3]], _singles(4)], [1, 1, 2, 2], 3)
    assert _spell(placement) == ["0:01 12:2", "0:01 1:2 2:3"]


def test_copies_of_an_expert_are_at_one_position_of_the_blocks_of_a_span() -> None:
    """Eight ranks, ep_size 2, weights 3:1: blocks 0 1 2 host task group 0, block 3 hosts task group 1."""
    placement = _place([_singles(2)], [3, 1], 8, 2)
    assert [placement.replica_ranks(0, rank) for rank in range(8)] == [
        *[(0, 2, 4), (1, 3, 5)] * 3,
        (6,),
        (7,),
    ]
    assert [placement.hosted_task_groups(0, rank) for rank in (0, 5, 6, 7)] == [(0,), (0,), (1,), (1,)]
    assert [placement.hosted_tasks(rank) for rank in (0, 5, 6, 7)] == [(0,), (0,), (1,), (1,)]


@pytest.mark.parametrize(("num_ranks", "ep_size"), [(1, 1), (2, 1), (4, 2), (8, 4), (16, 4)])
def test_colocated_hosts_everything_everywhere(num_ranks: int, ep_size: int) -> None:
    grouping = TaskGrouping.from_partitions(3, [[[0, 1, 2]], [[0], [1, 2]]])
    placement = place(grouping, [5, 1, 1], num_ranks=num_ranks, ep_size=ep_size, mode="colocated")
    blocks = tuple(range(num_ranks // ep_size))
    assert [[(span.blocks, span.task_groups) for span in spans] for spans in placement.layers] == [
        [(blocks, (0,))],
        [(blocks, (0, 1))],
    ]
    assert _hosts(placement) == {tuple(range(num_ranks)): (0, 1, 2)}


@pytest.mark.parametrize("mode", ["colocated", "partitioned"])
def test_without_routed_layers_every_rank_trains_every_task(mode: str) -> None:
    placement = place(TaskGrouping(2, ()), [1, 1], num_ranks=2, ep_size=1, mode=mode)  # type: ignore[arg-type]
    assert placement.layers == ()
    assert _hosts(placement) == {(0, 1): (0, 1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ep_size": 3}, r"got: +ep_size 3 with 4 ranks\n +expected: an ep_size that divides 4\n.*parallel.ep_size"),
        ({"ep_size": 8}, "ep_size 8 with 4 ranks"),
        ({"ep_size": 0}, "ep_size 0 with 4 ranks"),
        ({"num_ranks": 0}, "ep_size 1 with 0 ranks"),
        ({"weights": [1.0]}, r"1 weights\n +expected: 2, one per task"),
        ({"weights": [1.0, 0.0]}, r"got: +\[1.0, 0.0\]\n +expected: finite numbers above 0"),
        ({"weights": [1.0, -1.0]}, "finite numbers above 0"),
        ({"weights": [1.0, float("nan")]}, "finite numbers above 0"),
        ({"weights": [1.0, float("inf")]}, "finite numbers above 0"),
        ({"mode": "scattered"}, r"got: +scattered\n +expected: colocated \| partitioned"),
    ],
)
def test_what_cannot_be_placed_is_refused(change: dict, message: str) -> None:
    arguments = {"weights": [1.0, 1.0], "num_ranks": 4, "ep_size": 1, "mode": "partitioned"} | change
    with pytest.raises(ParallelError, match=message):
        place(TaskGrouping.one_per_task(2, 1), arguments.pop("weights"), **arguments)


def test_colocated_a_task_may_have_no_weight() -> None:
    """It is evaluated everywhere and trained nowhere; partitioned, no rank could be dealt to it."""
    placement = place(TaskGrouping.one_per_task(2, 1), [1.0, 0.0], num_ranks=2, ep_size=1, mode="colocated")
    assert _hosts(placement) == {(0, 1): (0, 1)}
    with pytest.raises(ParallelError, match="does not fit the placement"):
        place(TaskGrouping.one_per_task(2, 1), [1.0, 0.0], num_ranks=2, ep_size=1, mode="partitioned")


@st.composite
def _cases(draw: st.DrawFn) -> tuple[TaskGrouping, list[float], dict]:
    """A random tree of up to 9 tasks and 4 layers on up to 8 blocks of up to 4 ranks."""
    num_tasks = draw(st.integers(1, 9))
    labels = [0] * num_tasks
    partitions = []
    for _ in range(draw(st.integers(1, 4))):
        split = draw(st.lists(st.integers(0, 2), min_size=num_tasks, max_size=num_tasks))
        labels = [4 * label + part for label, part in zip(labels, split, strict=True)]
        partitions.append([[t for t in range(num_tasks) if labels[t] == label] for label in sorted(set(labels))])
    weights = draw(st.lists(st.floats(1e-3, 1e3), min_size=num_tasks, max_size=num_tasks))
    ep_size = draw(st.sampled_from([1, 2, 4]))
    num_ranks = ep_size * draw(st.integers(1, 8))
    mode = draw(st.sampled_from(["partitioned", "partitioned", "colocated"]))
    grouping = TaskGrouping.from_partitions(num_tasks, partitions)
    return grouping, weights, {"num_ranks": num_ranks, "ep_size": ep_size, "mode": mode}


@given(_cases())
def test_spans_and_host_classes_cover_everything_once(case: tuple) -> None:
    grouping, weights, arguments = case
    placement = place(grouping, weights, **arguments)
    for layer, spans in enumerate(placement.layers):
        blocks = [block for span in spans for block in span.blocks]
        assert blocks == list(range(placement.num_blocks))  # disjoint, complete and consecutive, in block order
        task_groups = [index for span in spans for index in span.task_groups]
        assert task_groups == list(range(grouping.num_task_groups(layer)))  # each hosted, by one span, in tree order
        assert all(span.task_groups for span in spans)
    ranks = [rank for host in placement.host_classes for rank in host.ranks]
    assert ranks == list(range(placement.num_ranks))
    tasks = [task for host in placement.host_classes for task in host.tasks]
    assert sorted(tasks) == list(range(grouping.num_tasks))


@given(_cases())
def test_deeper_ranks_lie_inside_their_parents(case: tuple) -> None:
    grouping, weights, arguments = case
    placement = place(grouping, weights, **arguments)

    def ranks_of(layer: int, task_group: int) -> set[int]:
        return {r for r in range(placement.num_ranks) if task_group in placement.hosted_task_groups(layer, r)}

    for layer in range(1, grouping.num_layers):
        for index, task_group in enumerate(grouping.layers[layer]):
            parent = grouping.task_group_of(layer - 1, task_group[0])
            assert ranks_of(layer, index) <= ranks_of(layer - 1, parent)


@given(_cases())
def test_a_rank_hosts_what_its_tasks_need_at_every_layer(case: tuple) -> None:
    grouping, weights, arguments = case
    placement = place(grouping, weights, **arguments)
    for rank in range(placement.num_ranks):
        for task in placement.hosted_tasks(rank):
            for layer in range(grouping.num_layers):
                assert grouping.task_group_of(layer, task) in placement.hosted_task_groups(layer, rank)
            # ... and the deepest layer hosts nothing that the rank does not train
        deepest = placement.hosted_task_groups(grouping.num_layers - 1, rank)
        assert {grouping.task_group_of(grouping.num_layers - 1, t) for t in placement.hosted_tasks(rank)} == set(
            deepest
        )


@given(_cases())
def test_enough_blocks_keep_the_deepest_task_groups_apart(case: tuple) -> None:
    grouping, weights, arguments = case
    placement = place(grouping, weights, **(arguments | {"mode": "partitioned"}))
    if grouping.num_task_groups(-1) <= placement.num_blocks:
        assert all(len(span.task_groups) == 1 for span in placement.layers[-1])
    else:
        assert all(len(span.blocks) == 1 for span in placement.layers[-1])


@given(_cases(), st.sampled_from([0.25, 3.0, 1e6]))
def test_scale_of_the_weights_makes_no_difference(case: tuple, scale: float) -> None:
    grouping, weights, arguments = case
    scaled = [scale * weight for weight in weights]
    assert place(grouping, weights, **arguments) == place(grouping, scaled, **arguments)


def test_the_example_of_the_documentation_holds() -> None:
    """docs/placement.md: tasks A B C weighted 2:1:1, three layers, 8 ranks, ep_size 2; the table of rank 5."""
    placement = _place([[[0, 1, 2]], [[0], [1, 2]], [[0], [1], [2]]], [2, 1, 1], 8, 2)
    assert _spell(placement) == ["0123:0", "01:0 23:1", "01:0 2:1 3:2"]
    assert [placement.hosted_task_groups(layer, 5) for layer in range(3)] == [(0,), (1,), (1,)]
    assert [placement.replica_ranks(layer, 5) for layer in range(3)] == [(1, 3, 5, 7), (5, 7), (5,)]
    assert placement.block_ranks(placement.block_of(5)) == (4, 5)
    assert _hosts(placement) == {(0, 1, 2, 3): (0,), (4, 5): (1,), (6, 7): (2,)}
    assert [layout.name for layout in layouts_of(placement)] == ["ep_size_2", "ep_size_2_2-2", "ep_size_2_2-1-1"]
