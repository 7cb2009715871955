"""A plan as text, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from distmoe.forecast.arrangement import Forecast, global_traffic
from distmoe.forecast.cautions import cautions, imbalance
from distmoe.forecast.hardware import GIB, Cluster
from distmoe.forecast.memory import Memory, parameters_on
from distmoe.forecast.simulate import Point
from distmoe.forecast.traffic import StepTraffic
from distmoe.forecast.workload import Workload
from distmoe.parallel.placement import Placement
from distmoe.training.grouping import tree_lines

_PARTS = tuple(field.name for field in fields(Memory))


def heading(workload: Workload, cluster: Cluster, precision: str) -> list[str]:
    device, per_node = cluster.accelerator, cluster.per_node * workload.tensor
    lines = [
        f"cluster: {cluster.nodes} nodes x {per_node} {device.name}, {device.memory / GIB:.0f} GiB each, "
        f"{device.flops(precision) / 1e12:,.2f} TFLOP/s ({precision}), {device.hbm / 1e12:.2f} TB/s memory, "
        f"{device.inside / 1e9:g} GB/s inside, {device.between / 1e9:g} GB/s between nodes",
        f"  source: {device.source}",
        f"parameters: {workload.total:,} total, {workload.active:,} active per token",
        *(f"  {line}" for line in tree_lines(workload.grouping, workload.tasks, workload.routed_layers)),
    ]
    if workload.tensor > 1:
        slices = ", positions between them too" if workload.sequence else ""
        lines.append(
            f"tensor parallelism: {workload.tensor} neighbours share the matrices of a data rank{slices}; "
            f"ranks below are the {cluster.num_ranks} data ranks"
        )
    return lines


def placement_table(workload: Workload, cluster: Cluster, placement: Placement) -> list[str]:
    """Task groups of the deepest layer to ranks and nodes."""
    factors = imbalance(workload, placement)
    lines = [f"placement: {placement.mode}, {placement.num_blocks} blocks of {placement.ep_size} ranks"]
    for host in placement.host_classes:
        first, last = host.ranks[0], host.ranks[-1]
        names = ", ".join(workload.tasks[task].name for task in host.tasks)
        parameters = parameters_on(workload, placement, first)
        lines.append(
            f"  ranks {first}-{last} (nodes {cluster.node_of(first)}-{cluster.node_of(last)}), "
            f"{parameters:,} parameters each, share of mixture / share of ranks {factors[host.ranks]:.2f}: {names}"
        )
    return lines


def memory_table(stages: Mapping[int, Memory]) -> list[str]:
    """GiB of the fullest rank, by part and ZeRO stage."""
    lines = ["memory of the fullest rank, GiB:", "  ZeRO " + "".join(f"{part:>13}" for part in (*_PARTS, "total"))]
    for stage, fullest in stages.items():
        values = [getattr(fullest, part) for part in _PARTS] + [fullest.total]
        lines.append(f"  {stage:>4} " + "".join(f"{value / GIB:>13.3f}" for value in values))
    return lines


def traffic_table(workload: Workload, cluster: Cluster, found: Forecast) -> list[str]:
    """The all-to-alls of a step, beside those of one all-to-all over all ranks."""
    if not workload.routed_layers:
        return ["all-to-all: none, the model is dense"]
    lines = [
        f"all-to-alls of one step, all {'data ' if workload.tensor > 1 else ''}ranks, even routing:",
        f"  {'':28}{'MB in node':>14}{'MB between':>14}{'messages in node':>18}{'between':>12}",
    ]

    def line(name: str, sent: StepTraffic) -> str:
        return (
            f"  {name:28}{sent.bytes_inside / 1e6:>14,.3f}{sent.bytes_between / 1e6:>14,.3f}"
            f"{sent.messages_inside:>18,}{sent.messages_between:>12,}"
        )

    return [
        *lines,
        line(f"blocks of {found.placement.ep_size}", found.traffic),
        line("global", global_traffic(workload, cluster, found)),
    ]


def tensor_lines(workload: Workload, found: Forecast) -> list[str]:
    """What a rank sends to its tensor neighbours."""
    sent = found.tensor_traffic
    if workload.tensor == 1:
        return []
    return [
        f"tensor neighbours, one step of each rank: {sent.all_reduces:,} all-reduces, "
        f"{sent.all_gathers:,} all-gathers, {sent.reduce_scatters:,} reduce-scatters, {sent.bytes / 1e6:,.3f} MB sent"
    ]


def time_lines(found: Forecast) -> list[str]:
    time = found.time
    parts = ", ".join(
        f"{name} {1e3 * getattr(time, name):.2f}"
        for name in ("dense", "experts", "exchange", "tensor", "reduction", "update")
        if name != "tensor" or time.tensor
    )
    return [
        f"step: predicted {1e3 * time.predicted:.2f} ms ({parts}); bound {1e3 * time.bound:.2f} ms",
        f"  {found.micro_batch} examples per rank and forward pass, {found.accumulation} per step, "
        f"{time.expert_rows:.0f} rows per expert",
    ]


def caution_lines(workload: Workload, cluster: Cluster, found: Forecast) -> list[str]:
    return [f"warning: {line}" for line in cautions(workload, cluster, found)]


def ranking(feasible: Sequence[Forecast], refused: int, typed: Sequence[str]) -> list[str]:
    """The fastest arrangements.

    Args:
        feasible: All of them, fastest first.
        refused: How many are not feasible.
        typed: What to type for the first of them.
    """
    lines = [f"best of {len(feasible)} feasible arrangements ({refused} refused); add to the command of the run:"]
    for found, arguments in zip(feasible, typed, strict=False):
        sums = found.choice.rounds_sums and found.accumulation > 1
        mark = f"  (adds up {found.accumulation} micro-batches in bf16: small gradients are lost)" if sums else ""
        lines.append(
            f"  {1e3 * found.time.predicted:>10.2f} ms  {found.memory.total / GIB:>7.2f} GiB  {arguments}{mark}"
        )
    return lines


def simulation_table(points: Sequence[Point]) -> list[str]:
    lines = [
        f"{'ranks':>6} {'G':>4}  {'all-to-all':22}{'block':>6}{'kB between/rank':>17}{'messages':>12}"
        f"{'exchange ms':>13}{'waiting':>9}{'rounding':>10}"
    ]
    for point in points:
        lines.append(
            f"{point.num_ranks:>6} {point.num_task_groups:>4}  {point.kind:22}{point.ep_size:>6}"
            f"{point.traffic.bytes_between / point.num_ranks / 1e3:>17,.1f}{point.traffic.messages:>12,}"
            f"{1e3 * point.exchange_seconds:>13.3f}{point.waiting:>9.3f}{point.idle_share:>10.3f}"
        )
    return lines
