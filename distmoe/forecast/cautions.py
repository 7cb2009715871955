"""What a person should hear before GPU hours are spent on an arrangement."""

from __future__ import annotations

import math

from distmoe.forecast.arrangement import Forecast, rank_choices
from distmoe.forecast.hardware import GIB, Cluster
from distmoe.forecast.workload import Workload
from distmoe.parallel.placement import Placement

STARVED = 1.5  # a task group with this many times fewer ranks than its share


def imbalance(workload: Workload, placement: Placement) -> dict[tuple[int, ...], float]:
    """For each host class (by its ranks): share of the mixture over share of the ranks.

    1 is even. Above 1 a host class trains its tasks less often than the mixture asks, and its losses count more
    instead: the gradient stays right on average, its variance grows. Were tokens to follow the mixture, the largest
    value would be the factor on the step's time.
    """
    total = math.fsum(workload.weights)
    return {
        host.ranks: math.fsum(workload.weights[task] for task in host.tasks)
        / total
        / (len(host.ranks) / placement.num_ranks)
        for host in placement.host_classes
    }


def weight_bound_rows(cluster: Cluster, precision: str) -> float:
    """Rows per expert below which reading its weights takes longer than multiplying with them: C / M."""
    device = cluster.accelerator
    return device.flops(precision) / device.hbm * (4 if precision == "fp32" else 2) / 2


def instead_of_stage3(workload: Workload, cluster: Cluster, found: Forecast) -> Forecast | None:
    """What fits without gathering weights, nearest to the arrangement found; None: nothing with ZeRO-1 or 2 does.

    ZeRO-2 cuts all but the weights, and a larger block cuts experts without ever gathering them. Another placement,
    accumulation in low precision and smaller blocks come last.
    """
    wanted = found.choice

    def distance(other: Forecast) -> tuple[bool, bool, bool, int, int]:
        choice = other.choice
        farther = choice.mode != wanted.mode, not choice.fp32_accumulation, choice.ep_size < wanted.ep_size
        return *farther, choice.ep_size, -choice.stage

    feasible, _ = rank_choices(workload, cluster, wanted)
    return min((one for one in feasible if one.choice.stage in (1, 2)), key=distance, default=None)


def cautions(workload: Workload, cluster: Cluster, found: Forecast) -> list[str]:
    """One line per thing to know, empty when all is well."""
    lines = [] if found.refused is None else [f"this combination is refused: {found.refused}"]
    placement, ep_size = found.placement, found.placement.ep_size
    crosses = cluster.nodes > 1 and bool(cluster.per_node % ep_size)
    if crosses and workload.routed_layers:
        lines.append(
            f"blocks of {ep_size} ranks span nodes of {cluster.per_node}: their all-to-all crosses the network; "
            f"use a parallel.ep_size that divides {cluster.per_node}"
        )
    for ranks, factor in imbalance(workload, placement).items():
        if factor > STARVED and len(placement.host_classes) > 1:
            lines.append(
                f"ranks {ranks[0]}-{ranks[-1]} carry {factor:.1f} times their share of the mixture: these tasks are "
                "starved of ranks; use more ranks, or flatten data.sampling"
            )
    bound = weight_bound_rows(cluster, found.choice.precision)
    if workload.routed_layers and found.time.expert_rows < bound:
        lines.append(
            f"{found.time.expert_rows:.0f} rows per expert and micro-batch, below {bound:.0f}: experts are limited by "
            "reading their weights; use a larger micro-batch, fewer experts or a larger parallel.ep_size"
        )
    if found.choice.stage == 3 and workload.routed_layers and cluster.num_ranks > 1:
        other = instead_of_stage3(workload, cluster, found)
        lines.append(
            "ZeRO-3 gathers every layer, with all experts of a rank, for each pass, one after the other (no prefetch "
            "in task-routed models): "
            + (
                f"{other.choice} fits in {other.memory.total / GIB:.1f} GiB, against {found.memory.total / GIB:.1f}"
                if other is not None
                else f"but no arrangement with ZeRO-1 or 2 and {found.choice.precision} fits"
            )
        )
    if found.choice.offload:
        lines.append("the optimizer is offloaded: neither its time on the host nor the host's memory is forecast")
    if not found.fits:
        lines.append(
            f"the fullest rank needs {found.memory.total / GIB:.2f} GiB, and of a device's "
            f"{cluster.accelerator.memory / GIB:.2f} only {cluster.accelerator.usable / GIB:.2f} are usable: "
            "lower data.micro_batch_size, raise parallel.ep_size or the ZeRO stage"
        )
    return lines
