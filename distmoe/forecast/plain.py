"""A plan as plain values, for JSON: all that :mod:`distmoe.forecast.text` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from distmoe.forecast.arrangement import Forecast, global_traffic, memory_of_stages
from distmoe.forecast.cautions import cautions, imbalance
from distmoe.forecast.hardware import Cluster
from distmoe.forecast.memory import Memory, parameters_on
from distmoe.forecast.workload import Workload
from distmoe.training.grouping import tree_lines


def plan(
    workload: Workload, cluster: Cluster, found: Forecast, *, best: Sequence[Forecast], feasible: int, refused: int
) -> dict[str, Any]:
    """The plan; ``cluster`` is that of data ranks.

    Args:
        workload: The run.
        cluster: Of its data ranks.
        found: What was asked for.
        best: The fastest arrangements.
        feasible: How many there are.
        refused: How many are not.
    """
    stages = memory_of_stages(workload, cluster, found)
    return {
        "cluster": {
            "nodes": cluster.nodes,
            "gpus_per_node": cluster.per_node * workload.tensor,
            "data_ranks": cluster.num_ranks,
            "accelerator": asdict(cluster.accelerator) | {"usable": cluster.accelerator.usable},
        },
        "parameters": {"total": workload.total, "active": workload.active},
        "task_groups": tree_lines(workload.grouping, workload.tasks, workload.routed_layers),
        "tensor": {"ranks": workload.tensor, "sequence": workload.sequence},
        "plan": arrangement(workload, found),
        "memory_bytes_by_stage": {str(stage): _memory(memory) for stage, memory in stages.items()},
        "global_traffic": asdict(global_traffic(workload, cluster, found)),
        "warnings": cautions(workload, cluster, found),
        "best": [arrangement(workload, one) for one in best],
        "arrangements": {"feasible": feasible, "refused": refused},
    }


def arrangement(workload: Workload, found: Forecast) -> dict[str, Any]:
    """One arrangement and what it would need."""
    factors = imbalance(workload, found.placement)
    return {
        **asdict(found.choice),
        "deepspeed": found.choice.deepspeed(),
        "micro_batch": found.micro_batch,
        "accumulation": found.accumulation,
        "memory_bytes": _memory(found.memory),
        "traffic": asdict(found.traffic),
        "tensor_traffic": asdict(found.tensor_traffic),
        "seconds": asdict(found.time) | {"predicted": found.time.predicted},
        "fits": found.fits,
        "refused": found.refused,
        "ranks_of_tasks": [
            {
                "ranks": [host.ranks[0], host.ranks[-1]],
                "tasks": [workload.tasks[task].name for task in host.tasks],
                "parameters": parameters_on(workload, found.placement, host.ranks[0]),
                "share_of_mixture_over_ranks": factors[host.ranks],
            }
            for host in found.placement.host_classes
        ],
    }


def _memory(memory: Memory) -> dict[str, float]:
    return asdict(memory) | {"total": memory.total}
