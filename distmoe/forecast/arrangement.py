"""Every way to arrange a run on a cluster: which are refused, which fit, which is fastest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from distmoe.engine import deepspeed_folder, ds_config, supported
from distmoe.engine.config import OptimizerConfig
from distmoe.errors import DistmoeError
from distmoe.forecast.choice import Choice
from distmoe.forecast.hardware import Cluster
from distmoe.forecast.memory import Memory, fullest
from distmoe.forecast.step_time import StepTime, step_time
from distmoe.forecast.tensor import TensorTraffic, tensor_traffic
from distmoe.forecast.traffic import StepTraffic, step_traffic
from distmoe.forecast.workload import Workload
from distmoe.parallel.placement import Placement, PlacementMode, place
from distmoe.training.checks import check_agreement


@dataclass(frozen=True)
class Forecast:
    """One feasible choice.

    Attributes:
        choice: What was set.
        placement: What follows from it.
        micro_batch: Examples per rank and forward pass.
        accumulation: Forward passes per step.
        memory: Of the fullest rank.
        traffic: All-to-alls of a step, over all data ranks; each tensor rank has as many again.
        tensor_traffic: What a rank does with its tensor neighbours in a step.
        time: Of a step.
        fits: Whether the fullest rank fits its device.
        refused: Why it would not train exactly; None: it would.
    """

    choice: Choice
    placement: Placement
    micro_batch: int
    accumulation: int
    memory: Memory
    traffic: StepTraffic
    tensor_traffic: TensorTraffic
    time: StepTime
    fits: bool
    refused: str | None


def forecast(workload: Workload, cluster: Cluster, choice: Choice) -> Forecast:
    """Forecasts one choice, a refused one too.

    Args:
        workload: The run.
        cluster: Of its data ranks.
        choice: What was set.

    Raises:
        DistmoeError: If it cannot be placed, or the batch cannot be dealt to the ranks.
    """
    ranks = cluster.num_ranks
    micro_batch, accumulation = workload.micro_batches(ranks)
    placement = place(workload.grouping, workload.weights, num_ranks=ranks, ep_size=choice.ep_size, mode=choice.mode)
    memory = fullest(
        workload, placement, choice, micro_batch=micro_batch, accumulation=accumulation,
        device_type=cluster.accelerator.device_type,
    )  # fmt: skip
    element = choice.element
    traffic = step_traffic(
        workload, placement, per_node=cluster.per_node, micro_batch=micro_batch, accumulation=accumulation,
        element=element,
    )  # fmt: skip
    beside = tensor_traffic(workload, micro_batch=micro_batch, accumulation=accumulation, element=element)
    time = step_time(
        workload, placement, cluster, stage=choice.stage, precision=choice.precision, micro_batch=micro_batch,
        accumulation=accumulation,
    )  # fmt: skip
    fits = memory.total <= cluster.accelerator.usable
    refused = refusal(workload, cluster, choice, placement)
    return Forecast(choice, placement, micro_batch, accumulation, memory, traffic, beside, time, fits, refused)


def refusal(workload: Workload, cluster: Cluster, choice: Choice, placement: Placement) -> str | None:
    """Why a run would not start with this choice, by the checks of the run itself; None: it would."""
    micro_batch, accumulation = workload.micro_batches(cluster.num_ranks)
    settings = ds_config.resolve(
        choice.deepspeed(),
        optimizer=OptimizerConfig(),
        micro_batch_size=micro_batch,
        accumulation_steps=accumulation,
        num_ranks=cluster.num_ranks,
        device_type=cluster.accelerator.device_type,
    )
    config, routed = choice.config(workload.config), bool(workload.routed_layers)
    try:
        check_agreement(
            config, tasks=workload.tasks, shape=workload.shape, grouping=workload.grouping, zero_stage=choice.stage
        )
        if config.checkpoint.format == "deepspeed":
            deepspeed_folder.check(
                settings, routed=routed, ep_size=choice.ep_size, partitioned=choice.mode == "partitioned"
            )
    except DistmoeError as reason:
        return f"{reason.what}; {reason.remedy}"
    case = supported.combination(
        settings,
        placement=placement,
        num_ranks=cluster.num_ranks,
        routed=routed,
        tensor=workload.tensor,
        spans_may_change=config.structure.learn is not None,
        pool_sizes=workload.pool_sizes,
    )
    row = supported.lookup(case)
    return None if row.supported else f"{row.note}; {row.remedy}"


def memory_of_stages(workload: Workload, cluster: Cluster, found: Forecast) -> dict[int, Memory]:
    """What the fullest rank would need under each ZeRO stage, with all else as it is."""
    return {
        stage: fullest(
            workload, found.placement, replace(found.choice, stage=stage), micro_batch=found.micro_batch,
            accumulation=found.accumulation, device_type=cluster.accelerator.device_type,
        )
        for stage in (0, 1, 2, 3)
    }  # fmt: skip


def global_traffic(workload: Workload, cluster: Cluster, found: Forecast) -> StepTraffic:
    """All-to-alls of a step if all ranks were one block."""
    ranks = cluster.num_ranks
    everywhere = place(workload.grouping, workload.weights, num_ranks=ranks, ep_size=ranks, mode="colocated")
    return step_traffic(
        workload, everywhere, per_node=cluster.per_node, micro_batch=found.micro_batch,
        accumulation=found.accumulation, element=found.choice.element,
    )  # fmt: skip


def choices(workload: Workload, cluster: Cluster, like: Choice) -> Iterator[Choice]:
    """All that divide: modes, block sizes that fit ranks and experts, ZeRO stages; the rest as in ``like``."""
    modes: tuple[PlacementMode, ...] = ("colocated", "partitioned") if workload.routed_layers else ("colocated",)
    for mode in modes:
        for ep_size in block_sizes(workload, cluster.num_ranks):
            for stage in (0, 1, 2, 3):
                one = replace(like, mode=mode, ep_size=ep_size, stage=stage, fp32_accumulation=like.precision != "fp16")
                yield one
                if like.precision == "bf16" and stage in (1, 2):
                    yield replace(one, fp32_accumulation=False)


def block_sizes(workload: Workload, num_ranks: int) -> list[int]:
    """Divisors of the ranks that also divide the experts of every task group."""
    largest = math.gcd(num_ranks, *(size for sizes in workload.pool_sizes for size in sizes))
    return [size for size in range(1, largest + 1) if largest % size == 0] if workload.pool_sizes else [1]


def rank_choices(workload: Workload, cluster: Cluster, like: Choice) -> tuple[list[Forecast], dict[Choice, str]]:
    """Returns the feasible forecasts among :func:`choices`, fastest first, and why the others are refused.

    Equal predictions are ordered by memory: what is left can hold a larger batch.
    """
    feasible, refused = [], {}
    for choice in choices(workload, cluster, like):
        try:
            found = forecast(workload, cluster, choice)
        except DistmoeError as reason:
            refused[choice] = str(reason).splitlines()[0]
            continue
        if found.refused is None and found.fits:
            feasible.append(found)
        else:
            refused[choice] = found.refused or "does not fit the memory of a device"
    return sorted(feasible, key=lambda one: (round(one.time.predicted, 9), one.memory.total)), refused
