"""Twenty structures in one process, each with process groups and an engine of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch.distributed import distributed_c10d

from tests.distributed import parity
from tests.distributed.harness import run_ranks

STRUCTURES = [
    parity.Case(name="structure", mode="partitioned", partitions=partitions)
    for partitions in (parity.THREE, parity.TREE, parity.TWO, parity.ONE)
]


def _regroup(rank: int) -> list[int]:
    """Process groups that torch knows after each engine was built, trained a step and destroyed."""
    from distmoe.engine.distributed import init_distributed

    init_distributed(timeout_minutes=5)
    counts = []
    for cycle in range(20):
        case = replace(STRUCTURES[cycle % len(STRUCTURES)], num_ranks=2)
        engine, _, objective, process_groups = parity.make_engine(case)
        engine.train_mode()
        parity.train_steps(case, engine, objective, [0], parity.Trace())
        engine.destroy()
        process_groups.destroy()
        counts.append(len(distributed_c10d._world.pg_map))
    return counts


@pytest.mark.slow
def test_twenty_regroupings_leave_as_many_process_groups_as_one() -> None:
    for counts in run_ranks(_regroup, 2):
        assert len(counts) == 20
        assert set(counts) == {counts[0]}
