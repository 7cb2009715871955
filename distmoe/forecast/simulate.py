"""How placements behave as ranks and task groups grow, up to thousands of ranks: no rank is started.

Weak scaling of one routed layer's exchange: each rank brings the same number of tokens. Compared are one all-to-all
over all ranks, one per task group, and one per task group in blocks that fit a node. Placements are made by
:func:`distmoe.parallel.placement.place`, bytes and messages counted on them exactly; waiting is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distmoe.forecast.hardware import LATENCY_BETWEEN, LATENCY_INSIDE, Cluster
from distmoe.forecast.traffic import StepTraffic, peer_pairs
from distmoe.forecast.workload import Workload
from distmoe.parallel.placement import place
from distmoe.tasks import TaskGrouping

Kind = Literal["global", "task group", "task group in a node"]
KINDS: tuple[Kind, ...] = ("global", "task group", "task group in a node")
_EXCHANGES = 4  # tokens and outputs, forward and backward


@dataclass(frozen=True)
class Point:
    """One placement of the simulation.

    Attributes:
        kind: Who exchanges with whom.
        num_ranks: P.
        num_task_groups: G.
        ep_size: Ranks of a block.
        traffic: One layer's exchanges of one step, over all ranks.
        exchange_seconds: Of that layer, latency and bandwidth model.
        waiting: Step time over the time without noise, from ranks that wait for the slowest of their block.
        idle_share: Largest share of ranks over share of the mixture, minus 1: rounding of blocks.
    """

    kind: Kind
    num_ranks: int
    num_task_groups: int
    ep_size: int
    traffic: StepTraffic
    exchange_seconds: float
    waiting: float
    idle_share: float


def simulate(
    workload: Workload,
    cluster: Cluster,
    *,
    max_ranks: int,
    tokens: int,
    element: int,
    task_groups: tuple[int, ...] = (4, 16, 64),
    noise: float = 0.1,
    seed: int = 0,
) -> Iterator[Point]:
    """Yields a point per kind, number of task groups and number of ranks: those of a node, doubled up to ``max_ranks``.

    Args:
        workload: Gives D, K and the number of layers.
        cluster: Gives ranks per node and links; its number of nodes is not used.
        max_ranks: Largest P.
        tokens: Per rank and step.
        element: Bytes of a number.
        task_groups: Numbers G; those above P are left out.
        noise: Standard deviation of a layer's time over its mean.
        seed: Of the noise.
    """
    ranks = cluster.per_node
    layers = workload.shape.num_layers
    while ranks <= max_ranks:
        for count in (count for count in task_groups if count <= ranks):
            for kind in KINDS:
                shared = ranks if kind != "task group in a node" else cluster.per_node  # what blocks divide
                ep_size = ranks if kind == "global" else _largest_divisor(shared, ranks // count)
                grouping = TaskGrouping.one_per_task(count, 1)
                mode: Literal["colocated", "partitioned"] = "colocated" if kind == "global" else "partitioned"
                placement = place(grouping, [1.0] * count, num_ranks=ranks, ep_size=ep_size, mode=mode)
                traffic = layer_traffic(
                    ranks, ep_size, per_node=cluster.per_node, tokens=tokens, top_k=max(1, workload.top_k),
                    row=workload.shape.hidden_size * element,
                )  # fmt: skip
                shares = [len(host.ranks) / ranks * len(placement.host_classes) for host in placement.host_classes]
                yield Point(
                    kind, ranks, count, ep_size, traffic, exchange_seconds(traffic, ranks, cluster),
                    waiting(ranks, ep_size, layers=layers, noise=noise, seed=seed), max(shares) - 1,
                )  # fmt: skip
        ranks *= 2


def layer_traffic(num_ranks: int, ep_size: int, *, per_node: int, tokens: int, top_k: int, row: int) -> StepTraffic:
    """Bytes and messages of one layer with even routing; ``row`` is the bytes of a hidden state."""
    inside, between = peer_pairs(num_ranks, ep_size, per_node)
    each = _EXCHANGES * tokens * top_k * row / ep_size
    return StepTraffic(inside * each, between * each, inside * _EXCHANGES, between * _EXCHANGES)


def exchange_seconds(traffic: StepTraffic, num_ranks: int, cluster: Cluster) -> float:
    """Latency per message plus bytes per link on one rank; the two kinds of links work side by side."""
    device = cluster.accelerator
    inside = traffic.messages_inside * LATENCY_INSIDE + traffic.bytes_inside / device.inside
    between = traffic.messages_between * LATENCY_BETWEEN + traffic.bytes_between / device.between
    return max(inside, between) / num_ranks


def waiting(num_ranks: int, ep_size: int, *, layers: int, noise: float, seed: int, trials: int = 20) -> float:
    """Mean step time over its noiseless value when each layer ends with a wait inside the block, the step with all.

    Each rank's layer takes 1 + noise * N(0, 1), drawn anew per layer and trial.
    """
    rng = np.random.default_rng(seed)
    clock = np.zeros((trials, num_ranks // ep_size, ep_size))
    for _ in range(layers):
        clock += np.maximum(0.0, 1 + noise * rng.standard_normal(clock.shape))
        clock[:] = clock.max(axis=2, keepdims=True)
    return float(clock.max(axis=(1, 2)).mean() / layers)


def _largest_divisor(number: int, limit: int) -> int:
    return max(size for size in range(1, min(number, limit) + 1) if number % size == 0)
