"""Predicted seconds of an optimizer step, and the bound that no implementation can beat.

Formulas: ``docs/cluster.md``. The *bound* is compute at the full dense rate with everything else hidden behind it, or
the longest of the others. The *prediction* adds the parts up, with the shares of the rate that kernels reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distmoe.forecast.hardware import LATENCY_BETWEEN, LATENCY_INSIDE, Cluster
from distmoe.forecast.memory import experts_on, owned_on
from distmoe.forecast.tensor import tensor_traffic
from distmoe.forecast.traffic import step_traffic
from distmoe.forecast.workload import Workload
from distmoe.models.decoder_shape import DecoderShape
from distmoe.parallel.placement import Placement

# Share of the dense rate: cuBLAS on layers of BERT's size (assumed), and torch's grouped matmul with separate
# permutes (measured, 25 to 35 %).
DENSE_EFFICIENCY, EXPERT_EFFICIENCY = 0.6, 0.3
_OPTIMIZER_BYTES = 28  # read weight, gradient, two moments; write weight, two moments; in fp32


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step on the slowest rank.

    Attributes:
        dense: Matrix products outside of experts, attention included; a rank's part of what is cut.
        experts: Matrix products of experts, or reading their weights if that takes longer.
        exchange: All-to-alls.
        tensor: Sums and gathers of tensor neighbours, which the step waits for.
        reduction: Gradients and, with ZeRO, weights over the ranks.
        update: Optimizer.
        bound: Lower bound of the step.
        expert_rows: Rows per local expert and micro-batch; below about 184 its weights' bandwidth is the limit.
    """

    dense: float
    experts: float
    exchange: float
    tensor: float
    reduction: float
    update: float
    bound: float
    expert_rows: float

    @property
    def predicted(self) -> float:
        return self.dense + self.experts + self.exchange + self.tensor + self.reduction + self.update


def step_time(
    workload: Workload,
    placement: Placement,
    cluster: Cluster,
    *,
    stage: int,
    precision: str,
    micro_batch: int,
    accumulation: int,
) -> StepTime:
    """Predicts a step; see the module's text."""
    device = cluster.accelerator
    element = 4 if precision == "fp32" else 2
    rate = device.flops(precision)
    tokens = micro_batch * workload.length * accumulation
    passes = 4 / 3 if workload.recompute else 1.0  # recomputation repeats the forward third
    dense_flops = passes * tokens * _dense_flops_per_token(workload)
    expert_flops = passes * tokens * 6 * workload.top_k * workload.expert * len(workload.routed_layers)
    held = max(sum(count for count, _ in experts_on(workload, placement, rank)) for rank in _first_ranks(placement))
    # Weights of a local expert are read in forward, for the input's gradient and for their own: 6 numbers of D x F.
    expert_read = 3 * accumulation * held * workload.expert * element / device.hbm
    exchange = _exchange_seconds(workload, placement, cluster, micro_batch, accumulation, element)
    tensor = _tensor_seconds(workload, cluster, micro_batch, accumulation, element)
    reduction = _reduction_seconds(workload, placement, cluster, element) * ring_passes(stage, accumulation)
    owned = max(owned_on(workload, placement, rank, stage=stage) for rank in _first_ranks(placement))
    update = _OPTIMIZER_BYTES * owned / device.hbm
    rows = 0.0
    if workload.routed_layers:
        rows = (
            micro_batch
            * workload.length
            * workload.top_k
            * placement.ep_size
            / max(
                sum(workload.pools(layer, span.task_groups))
                for layer, spans in enumerate(placement.layers)
                for span in spans
            )
        )
    return StepTime(
        dense=dense_flops / (rate * DENSE_EFFICIENCY),
        experts=max(expert_flops / (rate * EXPERT_EFFICIENCY), expert_read),
        exchange=exchange,
        tensor=tensor,
        reduction=reduction,
        update=update,
        bound=max((dense_flops + expert_flops) / rate, expert_read, exchange, tensor, reduction),
        expert_rows=rows,
    )


def _dense_flops_per_token(workload: Workload) -> float:
    """Forward 2 and backward 4 per weight; attention's two products of length S add 12 S per number of its heads.

    A decoder's head is one of vocabulary x D, also where it is the token table. Its attention is counted whole: kernels
    with a mask do not skip what is not seen. Of T tensor ranks each has a T-th of attention's heads and of that head.
    """
    shape = workload.shape
    multiplied = workload.own_replicated - workload.own_lookup - workload.own_heads
    multiplied += workload.vocab_size * shape.hidden_size // workload.tensor
    heads = shape.num_heads * shape.head_size if isinstance(shape, DecoderShape) else shape.hidden_size
    return 6 * multiplied + 12 * workload.length * heads * shape.num_layers / workload.tensor


def _first_ranks(placement: Placement) -> range:
    """One rank per block: those of a block hold equally much."""
    return range(0, placement.num_ranks, placement.ep_size)


def _exchange_seconds(
    workload: Workload, placement: Placement, cluster: Cluster, micro_batch: int, accumulation: int, element: int
) -> float:
    """Latency per peer plus bytes per link; links inside and between nodes work side by side."""
    if placement.ep_size == 1 or not workload.routed_layers:
        return 0.0
    sent = step_traffic(
        workload, placement, per_node=cluster.per_node, micro_batch=micro_batch, accumulation=accumulation,
        element=element,
    )  # fmt: skip
    device, ranks = cluster.accelerator, placement.num_ranks
    inside = sent.messages_inside / ranks * LATENCY_INSIDE + sent.bytes_inside / ranks / device.inside
    between = sent.messages_between / ranks * LATENCY_BETWEEN + sent.bytes_between / ranks / device.between
    return max(inside, between)


def _tensor_seconds(workload: Workload, cluster: Cluster, micro_batch: int, accumulation: int, element: int) -> float:
    """Rings over the tensor ranks, which lie inside a node: bytes over the link and a latency per ring."""
    beside = tensor_traffic(workload, micro_batch=micro_batch, accumulation=accumulation, element=element)
    return beside.bytes / cluster.accelerator.inside + beside.rings * math.log2(workload.tensor) * LATENCY_INSIDE


def ring_passes(stage: int, accumulation: int) -> int:
    """How often gradients and weights go round their rings in a step of A micro-batches (DeepSpeed 0.19).

    Gradients are reduced once and the result gathered; ZeRO-2 reduces after every micro-batch, and ZeRO-3 gathers the
    weights besides in each forward and backward pass.
    """
    return {2: accumulation + 1, 3: 3 * accumulation}.get(stage, 2)


def _reduction_seconds(workload: Workload, placement: Placement, cluster: Cluster, element: int) -> float:
    """Once round the rings of the slowest rank: of all ranks for what is replicated, of their copies for experts."""
    ranks = range(placement.num_ranks)
    seconds = [_ring(workload.own_replicated * element, ranks, cluster)] * len(ranks)
    for layer, spans in enumerate(placement.layers):
        for span in spans:
            held = sum(workload.pools(layer, span.task_groups)) // placement.ep_size
            for first in placement.block_ranks(span.blocks[0]):
                replicas = placement.replica_ranks(layer, first)
                once = _ring(held * workload.expert * element, replicas, cluster)
                for rank in replicas:
                    seconds[rank] += once
    return max(seconds)


def _ring(num_bytes: float, ranks: Sequence[int], cluster: Cluster) -> float:
    """Half an all-reduce over ``ranks``, ascending."""
    count = len(ranks)
    if count == 1:
        return 0.0
    across = cluster.node_of(ranks[0]) != cluster.node_of(ranks[-1])
    device = cluster.accelerator
    bandwidth, latency = (device.between, LATENCY_BETWEEN) if across else (device.inside, LATENCY_INSIDE)
    return num_bytes * (count - 1) / count / bandwidth + math.log2(count) * latency
