"""Process groups on four gloo ranks: the same on all, made and ended in one order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from distmoe.parallel.placement import Placement, place
from distmoe.parallel.process_groups import ReplicaClass, create
from distmoe.tasks import TaskGrouping
from tests.distributed.harness import run_ranks

_TREE = TaskGrouping.from_partitions(3, [[[0, 1, 2]], [[0], [1], [2]]])
_PAIR = TaskGrouping.from_partitions(2, [[[0, 1]], [[0], [1]], [[0], [1]]])
_FLAT = TaskGrouping.one_per_task(2, 1)
_PLACEMENTS = {
    "colocated": place(_TREE, [2, 1, 1], num_ranks=4, ep_size=2, mode="colocated"),
    "unequal": place(_TREE, [2, 1, 1], num_ranks=4, ep_size=1, mode="partitioned"),
    "equal": place(_PAIR, [1, 1], num_ranks=4, ep_size=1, mode="partitioned"),
    "blocks": place(_FLAT, [1, 1], num_ranks=4, ep_size=2, mode="partitioned"),
}


def _inspect(rank: int, placements: dict[str, Placement]) -> dict[str, Any]:
    seen = {}
    for name, placement in placements.items():
        groups = create(placement)
        hosting = [
            (h.task_groups, h.ep_rank, h.process_group and dist.get_process_group_ranks(h.process_group))
            for h in groups.hosting
        ]
        assert groups.alias is not None
        seen[name] = {
            "hosting": hosting,
            "classes": [_sums(c) for c in groups.replica_classes],
            "alias": _sums(groups.alias),
        }
        groups.destroy()
    return seen


def _sums(replica_class: ReplicaClass) -> tuple:
    """What the class says, and what an all-reduce of ``2**rank`` over its process groups proves: the bits are ranks."""
    sums = []
    for process_group in (replica_class.ep_group, replica_class.edp_group):
        bit = torch.tensor(2 ** dist.get_rank())
        dist.all_reduce(bit, group=process_group)
        sums.append(tuple(rank for rank in range(4) if bit.item() >> rank & 1))
    assert sums == [replica_class.ep_ranks, replica_class.edp_ranks]
    return replica_class.name, replica_class.layers, *sums, replica_class.uniform


def _cycle(rank: int, placements: list[Placement]) -> list[int]:
    counts = []
    for cycle in range(20):
        groups = create(placements[cycle % len(placements)])
        groups.destroy()
        groups.destroy()  # ends nothing twice
        counts.append(len(distributed_c10d._world.pg_map))
    dist.barrier()  # the world survived
    return counts


@pytest.fixture(scope="module")
def seen() -> list[dict[str, Any]]:
    return run_ranks(_inspect, 4, _PLACEMENTS)


def test_blocks_exchange_and_positions_are_copies(seen: list[dict[str, Any]]) -> None:
    """Colocated, ep_size 2: blocks {0 1} {2 3}, copies {0 2} {1 3}, both layers alike."""
    for rank in range(4):
        block, copies = [(0, 1), (2, 3)][rank // 2], [(0, 2), (1, 3)][rank % 2]
        only = ("ep_size_2", (0, 1), block, copies, True)
        assert seen[rank]["colocated"] == {
            "hosting": [((0,), rank % 2, list(block)), ((0, 1, 2), rank % 2, list(block))],
            "classes": [only],
            "alias": only,
        }


def test_unequal_spans_are_not_uniform(seen: list[dict[str, Any]]) -> None:
    """Weights 2:1:1: task group 0 on {0 1}, 1 on {2}, 2 on {3}; layer 0 everywhere."""
    for rank in range(4):
        world = ("ep_size_1", (0,), (rank,), (0, 1, 2, 3), True)
        copies = [(0, 1), (0, 1), (2,), (3,)][rank]
        assert seen[rank]["unequal"] == {
            "hosting": [((0,), 0, None), (([0, 0, 1, 2][rank],), 0, None)],
            "classes": [world, ("ep_size_1_2-1-1", (1,), (rank,), copies, False)],
            "alias": world,
        }


def test_equal_spans_share_a_class_over_layers(seen: list[dict[str, Any]]) -> None:
    """Two spans of two ranks: {0 2} and {1 3} each hold everything once."""
    for rank in range(4):
        complete, copies = [(0, 2), (1, 3)][rank % 2], [(0, 1), (2, 3)][rank // 2]
        assert seen[rank]["equal"]["classes"][1] == ("ep_size_1_2-2", (1, 2), complete, copies, True)


def test_the_alias_exists_where_no_layer_is_plain(seen: list[dict[str, Any]]) -> None:
    for rank in range(4):
        block, copies = [(0, 1), (2, 3)][rank // 2], [(0, 2), (1, 3)][rank % 2]
        assert seen[rank]["blocks"] == {
            "hosting": [((rank // 2,), rank % 2, list(block))],
            "classes": [("ep_size_2_1-1", (0,), (0, 1, 2, 3), (rank,), True)],
            "alias": ("ep_size_2", (), block, copies, True),
        }


def test_twenty_cycles_leave_no_process_group_behind() -> None:
    assert run_ranks(_cycle, 4, list(_PLACEMENTS.values())) == [[1] * 20] * 4
