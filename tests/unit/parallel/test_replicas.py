"""Layouts: who holds copies, and who holds everything once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distmoe.parallel.placement import place
from distmoe.parallel.replicas import Layout, layouts_of, one_span
from distmoe.tasks import TaskGrouping

layouts = st.builds(Layout, st.sampled_from([1, 2, 4]), st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple))


@pytest.mark.parametrize(
    ("layout", "name", "uniform"),
    [
        (Layout(1, (1,)), "ep_size_1", True),
        (Layout(4, (2,)), "ep_size_4", True),
        (Layout(2, (1, 1)), "ep_size_2_1-1", True),
        (Layout(1, (20, 20, 24)), "ep_size_1_20-20-24", False),
    ],
)
def test_names_carry_ep_size_and_spans(layout: Layout, name: str, uniform: bool) -> None:
    assert (layout.name, layout.uniform) == (name, uniform)
    assert int(name.split("_")[2]) == layout.ep_size  # as DeepSpeed reads it


@pytest.mark.parametrize(
    ("layout", "ep_ranks", "edp_ranks"),
    [
        # one span: blocks, and equal positions over all of them
        (Layout(2, (2,)), [(0, 1), (0, 1), (2, 3), (2, 3)], [(0, 2), (1, 3), (0, 2), (1, 3)]),
        # two spans of two ranks: the first ranks together hold everything, so do the second
        (Layout(1, (2, 2)), [(0, 2), (1, 3), (0, 2), (1, 3)], [(0, 1), (0, 1), (2, 3), (2, 3)]),
        # two spans of one block of two ranks: only the world holds everything, and there are no copies
        (Layout(2, (1, 1)), [(0, 1, 2, 3)] * 4, [(0,), (1,), (2,), (3,)]),
        # 2 and 1 copies: no rectangle, each block for itself
        (Layout(1, (2, 1)), [(0,), (1,), (2,)], [(0, 1), (0, 1), (2,)]),
    ],
)
def test_ranks_of_small_layouts(layout: Layout, ep_ranks: list, edp_ranks: list) -> None:
    ranks = range(layout.num_ranks)
    assert [layout.ep_ranks(rank) for rank in ranks] == ep_ranks
    assert [layout.edp_ranks(rank) for rank in ranks] == edp_ranks


@given(layouts)
def test_both_kinds_cut_the_world_into_sets(layout: Layout) -> None:
    for ranks_of in (layout.ep_ranks, layout.edp_ranks):
        for rank in range(layout.num_ranks):
            assert rank in ranks_of(rank)
            assert {ranks_of(other) for other in ranks_of(rank)} == {ranks_of(rank)}


@given(layouts)
def test_uniform_means_that_the_two_kinds_span_the_world(layout: Layout) -> None:
    products = {len(layout.ep_ranks(rank)) * len(layout.edp_ranks(rank)) for rank in range(layout.num_ranks)}
    if layout.uniform:
        assert products == {layout.num_ranks}
        for rank in range(layout.num_ranks):
            assert set(layout.ep_ranks(rank)) & set(layout.edp_ranks(rank)) == {rank}
    else:
        assert {layout.ep_ranks(rank) for rank in range(layout.ep_size)} == {tuple(range(layout.ep_size))}


def test_layers_cut_alike_share_a_layout() -> None:
    grouping = TaskGrouping.from_partitions(2, [[[0, 1]], [[0], [1]], [[0], [1]]])
    placement = place(grouping, [1, 1], num_ranks=4, ep_size=1, mode="partitioned")
    assert layouts_of(placement) == {Layout(1, (4,)): (0,), Layout(1, (2, 2)): (1, 2)}
    assert one_span(placement) == Layout(1, (4,))


@given(layouts)
def test_copies_are_those_of_the_placement(layout: Layout) -> None:
    """One task group per span, weighted by its blocks, gives the layout back."""
    grouping = TaskGrouping.one_per_task(len(layout.span_sizes), 1)
    placement = place(
        grouping, layout.span_sizes, num_ranks=layout.num_ranks, ep_size=layout.ep_size, mode="partitioned"
    )
    assert list(layouts_of(placement)) == [layout]
    for rank in range(layout.num_ranks):
        assert layout.edp_ranks(rank) == placement.replica_ranks(0, rank)
