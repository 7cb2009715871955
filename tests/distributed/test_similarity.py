"""Structural statistics over ranks: the same plan on every rank of every world size."""

from __future__ import annotations

import torch
import torch.distributed as dist

from distmoe.seed import generator
from distmoe.structure.frontier import start
from distmoe.structure.moments import PairMoments, ordered_sum
from distmoe.structure.probe import select_probe
from distmoe.structure.propose import plan_merges, propose
from distmoe.structure.similarity import Similarity
from distmoe.tasks import TaskGrouping
from tests.distributed.harness import run_ranks

CLUSTERS = ((0, 3, 5), (1, 2, 4))


def _features(num_examples: int, width: int = 8) -> torch.Tensor:
    """Six tasks in two planted clusters, ``[T, N, D]`` float32."""
    common = [torch.randn(num_examples, width, generator=generator(0, "cluster", c)) for c in range(2)]
    own = [torch.randn(num_examples, width, generator=generator(0, "task", task)) for task in range(6)]
    return torch.stack([common[0 if task in CLUSTERS[0] else 1] + 0.3 * own[task] for task in range(6)])


def _gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    pieces = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, tensor)
    return pieces


def _plan(rank: int) -> tuple[str, bytes, int]:
    probe = select_probe([40] * 6, num_examples=202, seed=0)
    position = {pair: index for index, pair in enumerate(probe.ids)}
    features = _features(len(probe.ids))
    mine = [position[pair] for pair in probe.shard(rank, dist.get_world_size())]
    local = PairMoments.of(features[:, mine], features[:, :32].mean(dim=1))
    moments = ordered_sum(local, _gather)
    grouping = TaskGrouping.one_per_task(6, 2)
    proposal = propose(start(grouping)[0], Similarity.from_moments(moments), threshold=0.8)
    plan = plan_merges(grouping, [proposal], version=0, loads=[100, 200, 300, 400, 500, 600])
    assert plan.after.layers[0] == CLUSTERS
    return plan.sha256, moments.cka().numpy().tobytes(), moments.num_examples


def test_one_two_and_four_ranks_make_the_same_plan_and_all_ranks_of_a_world_the_same_bits():
    worlds = {size: run_ranks(_plan, size) for size in (1, 2, 4)}
    assert {sha256 for answers in worlds.values() for sha256, _, _ in answers} == {worlds[1][0][0]}
    for answers in worlds.values():
        assert len({bits for _, bits, _ in answers}) == 1
        assert {count for _, _, count in answers} == {202}
