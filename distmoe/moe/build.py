"""From configuration to routed layer.

Experts of a layer are numbered over its task groups in order: first those of task group 0, then of task group 1, ...
"""

from __future__ import annotations

from itertools import accumulate

from distmoe.errors import ConfigError
from distmoe.moe.config import MoEConfig
from distmoe.moe.dispatch import Exchange, SlotLayout, build_dispatcher
from distmoe.moe.experts import ExpertPool
from distmoe.moe.gates import Gate, build_gate
from distmoe.moe.layer import RoutedFeedForward
from distmoe.nn.feed_forward import FeedForward
from distmoe.parallel.process_groups import LayerHosting
from distmoe.parallel.traffic import TrafficCounter
from distmoe.tasks import TaskSet
from distmoe.tasks.grouping import Partition


def expert_width(config: MoEConfig, intermediate_size: int) -> int:
    """Feed-forward width of one expert: as configured, or ``dense / top_k`` so that a token costs what it costs dense.

    Raises:
        ConfigError: If ``top_k`` does not divide the dense width and no width is configured.
    """
    if config.expert_size is not None:
        return config.expert_size
    if intermediate_size % config.top_k:
        raise ConfigError(
            "the dense feed-forward width cannot be divided by the experts per token",
            got=f"width {intermediate_size}, model.moe.top_k {config.top_k}",
            expected=f"a multiple of {config.top_k}",
            remedy="set model.moe.expert_size, or change model.moe.top_k",
        )
    return intermediate_size // config.top_k


def checked_pool_sizes(config: MoEConfig, partition: Partition, *, layer_index: int) -> tuple[int, ...]:
    """Experts of each task group of a layer.

    Raises:
        ConfigError: If the experts cannot be dealt evenly, or a task group has fewer than ``top_k``.
    """
    sizes = config.pool_sizes(partition)
    counted = config.experts_per_task is None and config.experts_per_task_group is None
    if counted and config.num_experts % len(partition):
        raise ConfigError(
            f"layer {layer_index}: the experts cannot be dealt evenly to the task groups",
            got=f"{config.num_experts} experts for {len(partition)} task groups",
            expected=f"a multiple of {len(partition)}",
            remedy="change model.moe.num_experts or structure.grouping, or set model.moe.experts_per_task_group",
        )
    count = min(sizes)
    if count < config.top_k:
        raise ConfigError(
            f"layer {layer_index}: a task group has fewer experts than a token chooses",
            got=f"{count} experts in the smallest task group, model.moe.top_k {config.top_k}",
            expected=f"at least {config.top_k} experts in every task group",
            remedy=f"raise {config.counting_keys}, lower model.moe.top_k, or join task groups in structure.grouping",
        )
    return sizes


def build_routed_feed_forward(
    config: MoEConfig,
    *,
    layer_index: int,
    routed_index: int,
    hidden_size: int,
    intermediate_size: int,
    activation: str,
    tasks: TaskSet,
    partition: Partition,
    hosting: LayerHosting,
    activation_checkpointing: bool = False,
    traffic: TrafficCounter | None = None,
) -> RoutedFeedForward:
    """Returns a routed layer on the CPU in float32, its parameters not yet initialised.

    Args:
        config: Options of routed layers.
        layer_index: Which layer of the model, for messages and traffic tags.
        routed_index: Which routed layer.
        hidden_size: D.
        intermediate_size: Width of the dense feed-forward part that is replaced; also that of the shared part.
        activation: Of experts and of the shared part.
        tasks: The run's tasks.
        partition: The layer's task groups.
        hosting: Which of them this rank's block holds, and its place in the block.
        activation_checkpointing: Recompute experts in backward.
        traffic: Counter of the run; None: the layer has one of its own.

    Raises:
        ConfigError: If experts, task groups and ``top_k`` do not fit, or a capacity meets a task-level gate.
        ParallelError: If ``ep_size`` does not divide the experts of a task group.
    """
    sizes = checked_pool_sizes(config, partition, layer_index=layer_index)
    first_experts = list(accumulate(sizes, initial=0))
    owners = [task_group for task_group, size in zip(partition, sizes, strict=True) for _ in range(size)]
    width = expert_width(config, intermediate_size)
    pools = {
        f"g{task_group}": ExpertPool(
            num_experts=sizes[task_group],
            hidden_size=hidden_size,
            intermediate_size=width,
            activation=activation,
            ep_rank=hosting.ep_rank,
            ep_size=hosting.ep_size,
            kernel=config.kernel,
        )
        for task_group in hosting.task_groups
    }
    allowed = [[task in owner for owner in owners] for task in range(len(tasks))]
    gate = build_gate(
        config.gate,
        hidden_size=hidden_size,
        num_experts=len(owners),
        top_k=config.top_k,
        combine=config.combine,
        tasks=tasks,
        allowed=allowed,
        routed_index=routed_index,
    )
    _check_capacity(config, gate)
    traffic = TrafficCounter() if traffic is None else traffic
    layout = SlotLayout(tuple(sizes[g] for g in hosting.task_groups), hosting.ep_rank, hosting.ep_size)
    exchange = None
    if hosting.process_group is not None:
        exchange = Exchange(
            hosting.process_group, f"layer{layer_index}", traffic, hosting.task_groups, hosting.observers
        )
    return RoutedFeedForward(
        gate=gate,
        pools=pools,
        dispatcher=build_dispatcher(
            layout,
            exchange,
            top_k=config.top_k,
            capacity_factor=config.capacity_factor,
            deduplicate=config.deduplicate,
        ),
        slot_of_E=layout.table([first_experts[g] for g in hosting.task_groups], len(owners)),
        shared_mlp=FeedForward(hidden_size, intermediate_size, activation) if config.shared_expert else None,
        activation_checkpointing=activation_checkpointing,
        traffic=traffic,
    )


def _check_capacity(config: MoEConfig, gate: Gate) -> None:
    if config.capacity_factor is not None and gate.granularity == "task":
        raise ConfigError(
            "a capacity limit contradicts a gate that sends whole tasks to one expert",
            got=f"model.moe.capacity_factor {config.capacity_factor} with gate {config.gate.kind}",
            expected="model.moe.capacity_factor null (dropless)",
            remedy="remove model.moe.capacity_factor, or choose a token-level gate",
        )
