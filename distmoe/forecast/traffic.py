"""Bytes and messages of the all-to-alls of a step, over all ranks, when experts are equally loaded.

The same integers that :class:`distmoe.parallel.traffic.TrafficCounter` counts: what a rank sends to *other* ranks.
Per routed layer and micro-batch a rank makes five exchanges with each peer of its block: split counts, tokens and
outputs forward, and the last two backward (performance notes, "4 K d b (P - 1) / P").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distmoe.forecast.workload import Workload
from distmoe.parallel.placement import Placement

_INT64, _FLOAT32 = 8, 4
_EXCHANGES = 5  # counts, tokens, outputs; tokens' and outputs' gradients
_EXCHANGES_DEDUPLICATED = 7  # and weights with places, there and back


@dataclass(frozen=True)
class StepTraffic:
    """What all ranks together send in one optimizer step.

    Attributes:
        bytes_inside: To other ranks of the own node.
        bytes_between: To other nodes.
        messages_inside: Likewise.
        messages_between: Likewise.
    """

    bytes_inside: float = 0
    bytes_between: float = 0
    messages_inside: int = 0
    messages_between: int = 0

    def __add__(self, other: StepTraffic) -> StepTraffic:
        return StepTraffic(
            self.bytes_inside + other.bytes_inside,
            self.bytes_between + other.bytes_between,
            self.messages_inside + other.messages_inside,
            self.messages_between + other.messages_between,
        )

    @property
    def bytes(self) -> float:
        return self.bytes_inside + self.bytes_between

    @property
    def messages(self) -> int:
        return self.messages_inside + self.messages_between


def distinct_ranks(ep_size: int, num_experts: int, top_k: int) -> float:
    """Expected ranks that hold at least one of a token's experts: R(P) = P (1 - C(E-E/P, K) / C(E, K)).

    Where E is no multiple of P, the first ranks hold one expert more.
    """
    held, longer = divmod(num_experts, ep_size)
    ranks_with = {held: ep_size - longer, held + 1: longer}
    return sum(
        ranks * (1 - math.comb(num_experts - experts, top_k) / math.comb(num_experts, top_k))
        for experts, ranks in ranks_with.items()
        if ranks
    )


def bytes_to_peer(
    workload: Workload, *, ep_size: int, task_groups: Sequence[int], routed_index: int, tokens: int, element: int
) -> float:
    """Bytes that a rank sends to one peer of its block, per routed layer and micro-batch.

    Args:
        workload: The run.
        ep_size: Ranks of the block.
        task_groups: Task groups that the block hosts at this layer.
        routed_index: The layer.
        tokens: Tokens of the rank in one micro-batch.
        element: Bytes of one number of a hidden state.
    """
    pools = workload.pools(routed_index, task_groups)
    row = workload.shape.hidden_size * element
    rows = tokens * workload.top_k / ep_size
    # Counts of the peer's experts; with a capacity, whose limit all ranks agree on, of the whole block.
    ranks_counted = 1
    if workload.capacity_factor is not None:
        ranks_counted, rows = ep_size, rows * min(1.0, workload.capacity_factor)
    counts = ranks_counted * sum(pools) / ep_size
    if not workload.deduplicate:
        return 4 * rows * row + counts * _INT64
    shares = workload.shares(routed_index, task_groups)
    ranks = math.fsum(s * distinct_ranks(ep_size, e, workload.top_k) for s, e in zip(shares, pools, strict=True))
    items = tokens * ranks / ep_size  # a token travels also where all of its rows are dropped
    return 4 * items * row + 2 * rows * 2 * _FLOAT32 + (counts + ranks_counted) * _INT64


def step_traffic(
    workload: Workload, placement: Placement, *, per_node: int, micro_batch: int, accumulation: int, element: int
) -> StepTraffic:
    """Sums over ranks, layers and micro-batches.

    Args:
        workload: The run.
        placement: Who hosts what.
        per_node: Ranks of a node.
        micro_batch: Examples per rank and forward pass.
        accumulation: Forward passes per step.
        element: Bytes of one number of a hidden state.
    """
    inside, between = peer_pairs(placement.num_ranks, placement.ep_size, per_node)
    tokens = micro_batch * workload.length
    exchanges = (_EXCHANGES_DEDUPLICATED if workload.deduplicate else _EXCHANGES) * accumulation
    total = StepTraffic()
    for routed_index, spans in enumerate(placement.layers):
        # Blocks of a span are alike; weighted by their number, the pairs of all blocks are shared out.
        weights = [(len(span.blocks) / placement.num_blocks, span.task_groups) for span in spans]
        mean = accumulation * math.fsum(
            share
            * bytes_to_peer(
                workload, ep_size=placement.ep_size, task_groups=hosted, routed_index=routed_index, tokens=tokens,
                element=element,
            )
            for share, hosted in weights
        )  # fmt: skip
        total += StepTraffic(inside * mean, between * mean, inside * exchanges, between * exchanges)
    return total


def peer_pairs(num_ranks: int, ep_size: int, per_node: int) -> tuple[int, int]:
    """Ordered pairs of different ranks of one block: those on one node, and those on two."""
    inside = 0
    for start in range(0, num_ranks, ep_size):
        stop, rank = start + ep_size, start
        while rank < stop:  # one run of ranks per node that the block touches
            end = min(stop, (rank // per_node + 1) * per_node)
            inside += (end - rank) * (end - rank - 1)
            rank = end
    return inside, num_ranks * (ep_size - 1) - inside
