"""Parts of a step by hand; the cluster's links are 1e9 bytes per second inside a node and 1e8 between nodes."""

from __future__ import annotations

import math

import pytest

from distmoe.forecast.hardware import LATENCY_BETWEEN
from distmoe.forecast.step_time import StepTime, ring_passes, step_time
from distmoe.forecast.workload import make_workload
from distmoe.parallel.placement import place
from distmoe.training.run_data import open_sources
from tests.unit.forecast.samples import cluster, config, workload


def timed(*, ep_size: int = 1, stage: int = 1, accumulation: int = 1) -> StepTime:
    """On 8 ranks of two nodes, colocated."""
    run = workload()
    placement = place(run.grouping, run.weights, num_ranks=8, ep_size=ep_size, mode="colocated")
    return step_time(
        run, placement, cluster(2, 4), stage=stage, precision="fp32", micro_batch=4, accumulation=accumulation
    )


def test_the_optimizer_updates_a_rank_s_part_whatever_the_blocks():
    """Colocated, all ranks together update every parameter once: 28 bytes each, at 1e10 bytes per second."""
    for ep_size in (1, 2, 4):
        assert timed(ep_size=ep_size).update == pytest.approx(28 * workload().total / 8 / 1e10, rel=1e-12)
    assert timed(stage=0).update == pytest.approx(28 * workload().total / 1e10, rel=1e-12)


def test_zero2_reduces_every_micro_batch_and_zero3_gathers_in_every_pass():
    assert [ring_passes(stage, 1) for stage in range(4)] == [2, 2, 2, 3]
    assert [ring_passes(stage, 4) for stage in range(4)] == [2, 2, 5, 12]
    once, more = (timed(stage=2, accumulation=count).reduction for count in (1, 4))
    assert more == once * 5 / 2


def test_copies_on_two_nodes_are_reduced_between_nodes_however_near_they_are():
    """Four tasks on ranks 0, 1-2, 3-4 and 5 of nodes of 2: neighbours hold the two copies of 2 experts."""
    settings = config("structure.grouping=per_task", "data.sampling.strategy=size_proportional")
    run = make_workload(settings, open_sources(settings), sizes=[1, 2, 2, 1])
    placement = place(run.grouping, run.weights, num_ranks=6, ep_size=1, mode="partitioned")
    assert placement.replica_ranks(0, 1) == (1, 2)

    def ring(parameters: int, ranks: int) -> float:
        return parameters * 4 * (ranks - 1) / ranks / 1e8 + math.log2(ranks) * LATENCY_BETWEEN

    found = step_time(run, placement, cluster(3, 2), stage=1, precision="fp32", micro_batch=4, accumulation=1)
    assert found.reduction == pytest.approx(2 * (ring(run.replicated, 6) + 2 * ring(2 * run.expert, 2)))
