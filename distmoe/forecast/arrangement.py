"""Every way to arrange a run on a cluster: which are refused, which fit, which is fastest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distmoe.engine import ds_config, supported
from distmoe.engine.config import OptimizerConfig
from distmoe.errors import DistmoeError
from distmoe.forecast.hardware import Cluster
from distmoe.forecast.memory import Memory, memory_on
from distmoe.forecast.step_time import StepTime, step_time
from distmoe.forecast.tensor import TensorTraffic, tensor_traffic
from distmoe.forecast.traffic import StepTraffic, step_traffic
from distmoe.forecast.workload import Workload
from distmoe.parallel.placement import Placement, PlacementMode, place

_RESERVE = 0.92  # share of a device's memory that a run can use: CUDA context, kernels' workspaces, fragmentation


@dataclass(frozen=True)
class Choice:
    """What a user can set."""

    mode: PlacementMode
    ep_size: int
    stage: int
    precision: str
    fp32_accumulation: bool = True

    def __str__(self) -> str:
        """As one would type it; what belongs into the DeepSpeed file comes first."""
        accumulation = "" if self.fp32_accumulation else f" data_types.grad_accum_dtype={self.precision}"
        return (
            f"ZeRO-{self.stage} {self.precision}{accumulation}  "
            f"parallel.placement={self.mode} parallel.ep_size={self.ep_size}"
        )

    def deepspeed(self) -> dict[str, Any]:
        """The part of a DeepSpeed file that says so."""
        values: dict[str, Any] = {"zero_optimization": {"stage": self.stage}}
        if self.precision != "fp32":
            values[self.precision] = {"enabled": True}
        if not self.fp32_accumulation:
            values["data_types"] = {"grad_accum_dtype": self.precision}
        return values


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
    settings = ds_config.resolve(
        choice.deepspeed(),
        optimizer=OptimizerConfig(),
        micro_batch_size=micro_batch,
        accumulation_steps=accumulation,
        num_ranks=ranks,
        device_type="cuda",
    )
    case = supported.combination(
        settings,
        placement=placement,
        num_ranks=ranks,
        routed=bool(workload.routed_layers),
        tensor=workload.tensor,
    )
    row = supported.lookup(case)
    memory = max(
        (
            memory_on(
                workload, placement, rank, stage=choice.stage, precision=choice.precision, micro_batch=micro_batch,
                accumulation=accumulation, fp32_accumulation=choice.fp32_accumulation,
            )
            for rank in range(0, ranks, choice.ep_size)
        ),
        key=lambda one: one.total,
    )  # fmt: skip
    element = 4 if choice.precision == "fp32" else 2
    traffic = step_traffic(
        workload, placement, per_node=cluster.per_node, micro_batch=micro_batch, accumulation=accumulation,
        element=element,
    )  # fmt: skip
    beside = tensor_traffic(workload, micro_batch=micro_batch, accumulation=accumulation, element=element)
    time = step_time(
        workload, placement, cluster, stage=choice.stage, precision=choice.precision, micro_batch=micro_batch,
        accumulation=accumulation,
    )  # fmt: skip
    fits = memory.total <= _RESERVE * cluster.accelerator.memory
    refused = None if row.supported else f"{row.note}; {row.remedy}"
    return Forecast(choice, placement, micro_batch, accumulation, memory, traffic, beside, time, fits, refused)


def choices(workload: Workload, cluster: Cluster, precision: str) -> Iterator[Choice]:
    """All that divide: modes, block sizes that fit ranks and experts, ZeRO stages."""
    modes: tuple[PlacementMode, ...] = ("colocated", "partitioned") if workload.routed_layers else ("colocated",)
    for mode in modes:
        for ep_size in block_sizes(workload, cluster.num_ranks):
            for stage in (0, 1, 2, 3):
                yield Choice(mode, ep_size, stage, precision)
                if precision == "bf16" and stage in (1, 2):
                    yield Choice(mode, ep_size, stage, precision, fp32_accumulation=False)


def block_sizes(workload: Workload, num_ranks: int) -> list[int]:
    """Divisors of the ranks that also divide the experts of every task group."""
    largest = math.gcd(num_ranks, *(size for sizes in workload.pool_sizes for size in sizes))
    return [size for size in range(1, largest + 1) if largest % size == 0] if workload.pool_sizes else [1]


def rank_choices(workload: Workload, cluster: Cluster, precision: str) -> tuple[list[Forecast], dict[Choice, str]]:
    """Returns the feasible forecasts, fastest first, and why the other choices are refused.

    Equal predictions are ordered by memory: what is left can hold a larger batch.
    """
    feasible, refused = [], {}
    for choice in choices(workload, cluster, precision):
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
