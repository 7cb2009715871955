"""Routed layers on 2 and 4 gloo ranks against one process with all tokens and all experts.

Every run of ranks goes through all variants of :data:`VARIANTS`, with uneven numbers of tokens and one rank without
any. All but one variant are float64, so that equality means 1e-12; the grouped matmul has no float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from distmoe.moe.dispatch.capacity import kept_rows
from distmoe.moe.layer import RoutedFeedForward
from distmoe.moe.routing import TokenContext
from distmoe.parallel.placement import place
from distmoe.parallel.process_groups import create
from distmoe.tasks import TaskGrouping
from tests.distributed.harness import run_ranks
from tests.unit.moe.layer_samples import TWO_TASK_GROUPS, WHOLE, D, make_layer, make_tokens

_FLOAT64 = 8
_NUM_TASKS = 3


@dataclass(frozen=True)
class Topology:
    """Ranks, blocks, and how many tokens each rank has."""

    ep_size: int
    tokens: tuple[int, ...]
    partition: tuple[tuple[int, ...], ...] = WHOLE
    mode: str = "colocated"

    @property
    def num_ranks(self) -> int:
        return len(self.tokens)

    def tasks_of(self, rank: int) -> tuple[int, ...]:
        """Tasks that a rank trains: with partitioned blocks, those of its block's task group."""
        return tuple(range(_NUM_TASKS)) if self.mode == "colocated" else self.partition[rank // self.ep_size]

    def sample(self, rank: int) -> tuple[Tensor, TokenContext]:
        x_TD, context = make_tokens(self.tokens[rank], seed=rank)
        tasks = torch.tensor(self.tasks_of(rank))
        return x_TD, TokenContext(tasks[context.task_ids_T % len(tasks)], context.sequence_ids_T, len(x_TD))


@dataclass(frozen=True)
class Outcome:
    """What a rank, or one process, computed."""

    y_TD: Tensor
    x_grad_TD: Tensor
    grads: dict[str, Tensor]
    first_expert: dict[str, int]
    experts_TK: Tensor
    dropped: int | None
    bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    messages: dict[str, int] = field(default_factory=dict)
    bytes_outside_block: int = 0


EP2 = Topology(2, (5, 9))
EP2_EMPTY = Topology(2, (0, 9), TWO_TASK_GROUPS)
EP4 = Topology(4, (5, 0, 7, 3))
TWO_BLOCKS = Topology(2, (6, 0, 7, 4), TWO_TASK_GROUPS, "partitioned")
TOPOLOGIES = {
    "ep 2": EP2,
    "ep 2, two task groups, rank 0 without tokens": EP2_EMPTY,
    "ep 4, rank 1 without tokens": EP4,
    "2 blocks x ep 2, a task group each, rank 1 without tokens": TWO_BLOCKS,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "exact": {"top_k": 2},
    "top 1": {"top_k": 1},
    "checkpointed": {"top_k": 2, "activation_checkpointing": True},
    "grouped matmul in float32": {"top_k": 2, "kernel": "grouped_mm", "dtype": torch.float32},
    "deduplicated": {"top_k": 2, "deduplicate": True},
    "deduplicated top 4": {"top_k": 4, "deduplicate": True},
    "capacity": {"top_k": 2, "capacity_factor": 0.5},
    "deduplicated with capacity": {"top_k": 2, "capacity_factor": 0.5, "deduplicate": True},
}
_COMMON = {"num_experts": 8, "combine": "raw", "shared_expert": True}


def run(layer: RoutedFeedForward, x_TD: Tensor, context: TokenContext, grad_TD: Tensor) -> Outcome:
    dtype = layer.gate.get_parameter("weight_ED").dtype
    x_TD = x_TD.to(dtype, copy=True).requires_grad_()
    y_TD, routing = layer(x_TD, context)
    y_TD.backward(grad_TD.to(dtype))
    assert x_TD.grad is not None
    missing = [name for name, parameter in layer.named_parameters() if parameter.grad is None]
    assert not missing, f"no gradient for {missing}"
    return Outcome(
        y_TD=y_TD.detach(),
        x_grad_TD=x_TD.grad,
        grads={name: parameter.grad for name, parameter in layer.named_parameters()},
        first_expert={name: pool.first_expert for name, pool in layer.pools.items()},
        experts_TK=routing.expert_ids_TK,
        dropped=None if routing.dropped is None else int(routing.dropped),
        bytes={tag: {way: layer.traffic.read(tag, way).bytes for way in WAYS} for tag in layer.traffic.tags},
        messages={tag: layer.traffic.read(tag).messages for tag in layer.traffic.tags},
    )


WAYS = ("forward", "backward")


def work(rank: int, topology: Topology) -> dict[str, Outcome]:
    """All variants on one rank."""
    grouping = TaskGrouping.uniform(_NUM_TASKS, 1, topology.partition)
    # Task 1 alone weighs as much as 0 and 2: partitioned blocks are dealt evenly to the two task groups.
    placement = place(
        grouping, [0.25, 0.5, 0.25], num_ranks=topology.num_ranks, ep_size=topology.ep_size, mode=topology.mode
    )
    process_groups = create(placement)
    outcomes = {}
    for name, options in VARIANTS.items():
        layer = make_layer(partition=topology.partition, hosting=process_groups.hosting[0], **(_COMMON | options))
        x_TD, context = topology.sample(rank)
        outcome = run(layer, x_TD, context, grad_of(topology, rank))
        block = placement.block_ranks(placement.block_of(rank))
        outcomes[name] = Outcome(**{**outcome.__dict__, "bytes_outside_block": layer.traffic.bytes_outside(set(block))})
    process_groups.destroy()
    return outcomes


def grad_of(topology: Topology, rank: int) -> Tensor:
    return torch.randn(
        topology.tokens[rank], D, generator=torch.Generator().manual_seed(90 + rank), dtype=torch.float64
    )


def one_process(topology: Topology, options: dict[str, Any], ranks: tuple[int, ...]) -> Outcome:
    samples = [topology.sample(rank) for rank in ranks]
    x_TD = torch.cat([x for x, _ in samples])
    context = TokenContext(torch.cat([c.task_ids_T for _, c in samples]), torch.arange(len(x_TD)), len(x_TD))
    layer = make_layer(partition=topology.partition, **(_COMMON | options))
    return run(layer, x_TD, context, torch.cat([grad_of(topology, rank) for rank in ranks]))


_ANSWERS: dict[str, list[dict[str, Outcome]]] = {}


@pytest.fixture(params=TOPOLOGIES)
def answers(request: pytest.FixtureRequest) -> tuple[Topology, list[dict[str, Outcome]]]:
    """Each topology's ranks run once for all tests of this file."""
    topology = TOPOLOGIES[request.param]
    if request.param not in _ANSWERS:
        _ANSWERS[request.param] = run_ranks(work, topology.num_ranks, topology)
    return topology, _ANSWERS[request.param]


def blocks_of(topology: Topology) -> list[tuple[int, ...]]:
    size = topology.ep_size
    return [tuple(range(start, start + size)) for start in range(0, topology.num_ranks, size)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_equal_one_process(answers: tuple[Topology, list[dict[str, Outcome]]], variant: str) -> None:
    topology, ranks = answers

    whole = [one_process(topology, VARIANTS[variant], block) for block in blocks_of(topology)]
    close = {"atol": 2e-5 if "dtype" in VARIANTS[variant] else 1e-12, "rtol": 0}
    got = [outcomes[variant] for outcomes in ranks]
    torch.testing.assert_close(torch.cat([o.y_TD for o in got]), torch.cat([o.y_TD for o in whole]), **close)
    torch.testing.assert_close(torch.cat([o.x_grad_TD for o in got]), torch.cat([o.x_grad_TD for o in whole]), **close)
    if "capacity_factor" in VARIANTS[variant]:
        assert sum(o.dropped for o in got) == sum(o.dropped for o in whole) > 0
    for name, expected in {name: sum(o.grads[name] for o in whole) for name in whole[0].grads}.items():
        torch.testing.assert_close(summed(got, name, expected), expected, msg=name, **close)


def summed(outcomes: list[Outcome], name: str, like: Tensor) -> Tensor:
    """Sum over ranks of a parameter's gradient, shards put where they belong; ranks without the pool add nothing."""
    total = torch.zeros_like(like)
    for outcome in outcomes:
        grad = outcome.grads.get(name)
        if grad is None:
            assert name.startswith("pools.")
            continue
        first = outcome.first_expert[name.split(".")[1]] if name.startswith("pools.") else 0
        total[first : first + len(grad)] += grad
    return total


def homes(topology: Topology) -> list[int]:
    """Position in its block of the rank that holds each of the 8 experts."""
    per_task_group = 8 // len(topology.partition)
    return [expert % per_task_group // (per_task_group // topology.ep_size) for expert in range(8)]


def test_rows_sent_are_exactly_those_whose_expert_lives_elsewhere(
    answers: tuple[Topology, list[dict[str, Outcome]]],
) -> None:
    topology, ranks = answers
    home = homes(topology)
    row = D * _FLOAT64
    for rank, outcomes in enumerate(ranks):
        outcome, own = outcomes["exact"], rank % topology.ep_size
        away = [home[e] for chosen in outcome.experts_TK.tolist() for e in chosen if home[e] != own]
        block = blocks_of(topology)[rank // topology.ep_size]
        received = sum(
            home[e] == own
            for other in block
            if other != rank
            for chosen in ranks[other]["exact"].experts_TK.tolist()
            for e in chosen
        )
        assert outcome.bytes["layer1/tokens"] == {"forward": len(away) * row, "backward": received * row}
        assert outcome.bytes["layer1/outputs"] == {"forward": received * row, "backward": len(away) * row}
        # Counts: one int64 per expert of every other rank's hosted pools, never backward.
        hosted = 8 if topology.mode == "colocated" else 4
        counts = (topology.ep_size - 1) * hosted // topology.ep_size * 8
        assert outcome.bytes["layer1/counts"] == {"forward": counts, "backward": 0}
        assert set(outcome.bytes) == {"layer1/counts", "layer1/tokens", "layer1/outputs"}


def test_checkpointing_repeats_no_exchange(answers: tuple[Topology, list[dict[str, Outcome]]]) -> None:
    for outcomes in answers[1]:
        assert outcomes["checkpointed"].bytes == outcomes["exact"].bytes
        assert outcomes["checkpointed"].messages == outcomes["exact"].messages


@pytest.mark.parametrize(("variant", "exact"), [("deduplicated", "exact"), ("deduplicated top 4", None)])
def test_deduplicated_tokens_travel_once_per_rank(
    answers: tuple[Topology, list[dict[str, Outcome]]], variant: str, exact: str | None
) -> None:
    topology, ranks = answers
    home = homes(topology)
    for rank, outcomes in enumerate(ranks):
        outcome, own = outcomes[variant], rank % topology.ep_size
        chosen = outcome.experts_TK.tolist()
        distinct = sum(len({home[e] for e in row} - {own}) for row in chosen)
        pairs = sum(home[e] != own for row in chosen for e in row)
        assert outcome.bytes["layer1/tokens"]["forward"] == distinct * D * _FLOAT64
        assert outcome.bytes["layer1/outputs"]["backward"] == distinct * D * _FLOAT64
        assert outcome.bytes["layer1/pairs"]["forward"] == pairs * 2 * _FLOAT64  # weight and place
        if exact:
            assert outcome.bytes["layer1/tokens"]["forward"] <= outcomes[exact].bytes["layer1/tokens"]["forward"]
    if variant == "deduplicated top 4" and topology.num_ranks == topology.ep_size:
        whole = sum(outcomes[variant].bytes["layer1/tokens"]["forward"] for outcomes in ranks)
        rows = sum(
            home[e] != rank
            for rank, outcomes in enumerate(ranks)
            for row in outcomes[variant].experts_TK.tolist()
            for e in row
        )
        assert whole < rows * D * _FLOAT64


def test_nothing_leaves_the_block(answers: tuple[Topology, list[dict[str, Outcome]]]) -> None:
    topology, ranks = answers
    for outcomes in ranks:
        for variant, outcome in outcomes.items():
            assert outcome.bytes_outside_block == 0, variant
    total = sum(outcome.bytes["layer1/tokens"]["forward"] for outcomes in ranks for outcome in outcomes.values())
    assert total > 0, f"nothing travelled at all in {topology}"


def test_capacity_counts_the_rows_of_the_whole_block(
    answers: tuple[Topology, list[dict[str, Outcome]]],
) -> None:
    """Drops per rank equal the table of counts cut by hand-tested :func:`kept_rows`."""
    topology, ranks = answers
    per_task_group = 8 // len(topology.partition)
    for block in blocks_of(topology):
        tables = [torch.bincount(ranks[rank]["capacity"].experts_TK.flatten(), minlength=8) for rank in block]
        counts = torch.stack(tables)
        kept = kept_rows(counts, torch.arange(8) // per_task_group, 0.5)
        assert [ranks[rank]["capacity"].dropped for rank in block] == (counts - kept).sum(1).tolist()
