"""Hosts of a frontier's members, by hand."""

from __future__ import annotations

from distmoe.parallel.placement import place
from distmoe.structure.frontier import Frontier
from distmoe.structure.hosting import Hosting
from distmoe.tasks import TaskGrouping

THREE = TaskGrouping.one_per_task(3, 1)
FRONTIER = Frontier(0, ((0,), (1,), (2,)))


def test_members_live_on_the_blocks_of_their_span() -> None:
    """8 ranks in 4 blocks of 2, weights 2:1:1: task 0 on blocks 0 and 1, task 1 on block 2, task 2 on block 3."""
    placement = place(THREE, (2.0, 1.0, 1.0), num_ranks=8, ep_size=2, mode="partitioned")
    hosting = Hosting.of(FRONTIER, THREE, placement)
    assert hosting.hosts == ((0, 1, 2, 3), (4, 5), (6, 7))
    assert [hosting.members_of(rank) for rank in (0, 3, 4, 7)] == [(0,), (0,), (1,), (2,)]
    assert not hosting.is_everywhere


def test_colocated_every_rank_hosts_every_member() -> None:
    hosting = Hosting.of(FRONTIER, THREE, place(THREE, (1.0,) * 3, num_ranks=2, ep_size=1, mode="colocated"))
    assert hosting.hosts == ((0, 1),) * 3
    assert hosting.is_everywhere


def test_a_frontier_below_a_split_leaves_other_ranks_without_members() -> None:
    """Layer 1 of {0 1} {2}: task 2 is no member, so its rank hosts none."""
    tree = TaskGrouping.from_partitions(3, [[[0, 1], [2]], [[0], [1], [2]]])
    placement = place(tree, (1.0,) * 3, num_ranks=3, ep_size=1, mode="partitioned")
    hosting = Hosting.of(Frontier(1, ((0,), (1,))), tree, placement)
    assert hosting.hosts == ((0,), (1,))
    assert [hosting.members_of(rank) for rank in range(3)] == [(0,), (1,), ()]
