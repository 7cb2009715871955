"""Bytes of one rank, part by part, for each ZeRO stage (DeepSpeed 0.19 with distmoe's AdamW).

Experts are cut over the ranks that hold a copy, everything else over all ranks. What DeepSpeed allocates beyond that
is in ``buffers``; the allocator's own fragmentation is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from distmoe.engine.ds_config import REDUCE_BUCKET
from distmoe.forecast.activations import activation_bytes, logit_bytes
from distmoe.forecast.choice import Choice
from distmoe.forecast.workload import Workload
from distmoe.parallel.placement import Placement


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank by part.

    Attributes:
        weights: As the model computes with them.
        gradients: Until the optimizer step. Under ZeRO-1 and 2, without accumulation, they arise where activations are
            freed: what counts is by how much they exceed these.
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
        held = sum(workload.pools(layer, span.task_groups))
        found.append((held // placement.ep_size, len(span.blocks)))
    return found


def parameters_on(workload: Workload, placement: Placement, rank: int) -> int:
    """Parameters of a rank before ZeRO cuts anything; ``rank`` is a data rank, its tensor ranks hold equally many."""
    held = sum(count for count, _ in experts_on(workload, placement, rank))
    return workload.own_replicated + held * workload.expert


def owned_on(workload: Workload, placement: Placement, rank: int, *, stage: int) -> float:
    """Parameters that the rank's optimizer updates: with ZeRO its part of what all data ranks, or copies, share."""
    if stage == 0:
        return parameters_on(workload, placement, rank)
    return workload.own_replicated / placement.num_ranks + sum(
        count * workload.expert / copies for count, copies in experts_on(workload, placement, rank)
    )


def memory_on(
    workload: Workload,
    placement: Placement,
    rank: int,
    *,
    stage: int,
    precision: str,
    micro_batch: int,
    accumulation: int = 1,
    fp32_accumulation: bool = True,
    bucket: int = REDUCE_BUCKET,
    overlap_comm: bool = False,
    offload: bool = False,
    device_type: str = "cuda",
) -> Memory:
    """Bytes of ``rank``.

    Args:
        workload: The run.
        placement: Who hosts what.
        rank: Which data rank; its tensor ranks need equally much.
        stage: ZeRO stage.
        precision: fp32, bf16 or fp16.
        micro_batch: Examples per forward pass.
        accumulation: Forward passes per step.
        fp32_accumulation: Whether micro-batches are added up in fp32.
        bucket: Elements of ``zero_optimization.reduce_bucket_size``; ZeRO allocates it whole.
        overlap_comm: Whether reductions run beside the backward pass, from two buckets.
        offload: Whether the optimizer lives in host memory, which is not counted but where it is the device's own.
        device_type: cuda or cpu; see :func:`activation_bytes`.
    """
    element = 4 if precision == "fp32" else 2
    held = parameters_on(workload, placement, rank)
    owned = owned_on(workload, placement, rank, stage=stage)
    activations = activation_bytes(workload, micro_batch=micro_batch, element=element, device_type=device_type)
    weights, gradients, buffers = float(held * element), float(held * element), 0.0
    bf16_optimizer = stage == 1 and precision == "bf16" and fp32_accumulation and not offload
    moved = offload and stage > 0 and device_type != "cpu"
    if bf16_optimizer:
        gradients += held * 4  # DeepSpeed's BF16_Optimizer keeps every gradient in fp32 beside the model's own
    elif stage in (1, 2):
        # A gradient moves into the reduction bucket as soon as it exists; kept is the fp32 mean of the rank's own part.
        # Offloaded, the mean is on the host, unless it is summed up in more bytes than weights have.
        shard = 0.0 if moved and (precision == "fp32" or not fp32_accumulation) else owned * 4
        number = 4 if stage == 1 and fp32_accumulation else element  # ZeRO-2's holds what arrives, in the model's type
        gradients = shard if accumulation > 1 else max(0.0, shard - activations)
        gradients += 0 if stage == 1 else element * largest_layer_on(workload, placement, rank)
        buffers = (2 if overlap_comm else 1) * bucket * number
        if device_type == "cpu":  # where only pages that were written count: a layer's at first, all when none is left
            buffers = min(bucket, largest_layer_on(workload, placement, rank)) * number
            buffers = max(buffers, min(bucket, held) * number + shard - activations - gradients)
    elif stage == 3:
        live = 2 * largest_layer_on(workload, placement, rank)  # the layer at work and the one fetched ahead
        weights, gradients = owned * element, owned * 4
        buffers = (live + (min(bucket, held) if device_type == "cpu" else bucket)) * element
    master = 0.0 if stage == 0 or moved else 4 * owned
    return Memory(
        weights=weights,
        gradients=gradients,
        master=master,
        moments=0.0 if moved else 8 * owned,
        activations=activations,
        buffers=buffers + logit_bytes(workload, micro_batch=micro_batch),
    )


def fullest(
    workload: Workload,
    placement: Placement,
    choice: Choice,
    *,
    micro_batch: int,
    accumulation: int,
    device_type: str,
) -> Memory:
    """Bytes of the rank that needs most; those of a block need equally much. Arguments as of :func:`memory_on`."""
    return max(
        (
            memory_on(
                workload, placement, rank, stage=choice.stage, precision=choice.precision, micro_batch=micro_batch,
                accumulation=accumulation, fp32_accumulation=choice.fp32_accumulation, bucket=choice.bucket,
                overlap_comm=choice.overlap_comm, offload=choice.offload, device_type=device_type,
            )
            for rank in range(0, placement.num_ranks, placement.ep_size)
        ),
        key=lambda one: one.total,
    )  # fmt: skip


def largest_layer_on(workload: Workload, placement: Placement, rank: int) -> int:
    """Parameters of the rank's largest layer before ZeRO cuts anything; embeddings and heads count as one each."""
    layer = (workload.own_replicated - workload.own_lookup - workload.own_heads) // workload.shape.num_layers
    experts = max((count for count, _ in experts_on(workload, placement, rank)), default=0) * workload.expert
    return max(layer + experts, workload.own_lookup, workload.own_heads)
