"""Bytes of one rank, part by part, for each ZeRO stage (DeepSpeed 0.19 with distmoe's AdamW).

Experts are cut over the ranks that hold a copy, everything else over all ranks. What DeepSpeed allocates beyond that
is in ``buffers``; the allocator's own fragmentation is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from distmoe.forecast.activations import activation_bytes, logit_bytes
from distmoe.forecast.workload import Workload
from distmoe.parallel.placement import Placement

_BUCKET = 500_000_000  # elements of DeepSpeed's default reduce_bucket_size; ZeRO-1/2 allocate it whole


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank by part.

    Attributes:
        weights: As the model computes with them.
        gradients: Until the optimizer step.
        master: fp32 copies that the optimizer updates.
        moments: Of AdamW, fp32.
        activations: Kept for backward, of one micro-batch.
        buffers: Reduction buckets, gathered weights, a decoder's logits.
    """

    weights: float = 0
    gradients: float = 0
    master: float = 0
    moments: float = 0
    activations: float = 0
    buffers: float = 0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def experts_on(workload: Workload, placement: Placement, rank: int) -> list[tuple[int, int]]:
    """For each routed layer: experts that the rank holds, and how many ranks hold copies of them."""
    found = []
    for layer in range(len(placement.layers)):
        span = placement.span_of(layer, rank)
        held = len(span.task_groups) * workload.experts_per_task_group(layer) // placement.ep_size
        found.append((held, len(span.blocks)))
    return found


def parameters_on(workload: Workload, placement: Placement, rank: int) -> int:
    """Parameters of a rank before ZeRO cuts anything."""
    held = sum(count for count, _ in experts_on(workload, placement, rank))
    return workload.replicated + held * workload.expert


def memory_on(
    workload: Workload,
    placement: Placement,
    rank: int,
    *,
    stage: int,
    precision: str,
    micro_batch: int,
    fp32_accumulation: bool = True,
    bucket: int = _BUCKET,
) -> Memory:
    """Bytes of ``rank``.

    Args:
        workload: The run.
        placement: Who hosts what.
        rank: Which rank.
        stage: ZeRO stage.
        precision: fp32, bf16 or fp16.
        micro_batch: Examples per forward pass.
        fp32_accumulation: Whether micro-batches are added up in fp32.
        bucket: Elements of ``zero_optimization.reduce_bucket_size``.
    """
    element = 4 if precision == "fp32" else 2
    ranks = placement.num_ranks
    held = parameters_on(workload, placement, rank)
    # What of it this rank's optimizer owns: replicated parameters cut over all ranks, experts over their copies.
    cut = workload.replicated / ranks + sum(
        count * workload.expert / copies for count, copies in experts_on(workload, placement, rank)
    )
    owned = held if stage == 0 else cut
    weights, gradients, buffers = float(held * element), float(held * element), 0.0
    bf16_optimizer = stage == 1 and precision == "bf16" and fp32_accumulation
    if bf16_optimizer:
        gradients += held * 4  # DeepSpeed's BF16_Optimizer keeps every gradient in fp32 beside the model's own
    elif stage in (1, 2):
        # A gradient moves into the reduction bucket as soon as it exists; kept is the fp32 mean of the rank's own part.
        gradients = cut * 4 + (0 if stage == 1 else element * _largest_layer(workload))
        buffers = bucket * (4 if precision == "fp32" or stage == 1 else 2)
    elif stage == 3:
        live = 2 * _largest_layer(workload)  # the layer at work and the one fetched ahead
        weights, gradients = cut * element, cut * 4
        buffers = (live + min(bucket, held)) * element
    master = 0.0 if stage == 0 else 4 * cut
    return Memory(
        weights=weights,
        gradients=gradients,
        master=master,
        moments=8 * owned,
        activations=activation_bytes(workload, micro_batch=micro_batch, element=element),
        buffers=buffers + logit_bytes(workload, micro_batch=micro_batch),
    )


def _largest_layer(workload: Workload) -> float:
    layer = (workload.replicated - workload.lookup - workload.heads) / workload.shape.num_layers
    experts = workload.num_experts * workload.expert if workload.routed_layers else 0
    return max(layer + experts, workload.lookup, workload.heads)
