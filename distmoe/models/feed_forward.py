"""The feed-forward parts of a model's layers, dense or routed: the same for encoders and decoders."""

from __future__ import annotations

from collections.abc import Sequence

from distmoe.errors import ConfigError
from distmoe.models.config import ModelConfig
from distmoe.models.layer_plan import routed_layers
from distmoe.models.shape import ModelShape
from distmoe.moe.build import build_routed_feed_forward
from distmoe.moe.layer import RoutedFeedForward
from distmoe.nn.feed_forward import FeedForward
from distmoe.parallel.process_groups import LayerHosting
from distmoe.parallel.traffic import TrafficCounter
from distmoe.tasks import TaskGrouping, TaskSet

# Whose streams all task groups of a layer draw from where they start alike.
FIRST_POOL = "g0"


def feed_forward_parts(
    config: ModelConfig,
    *,
    shape: ModelShape,
    tasks: TaskSet,
    grouping: TaskGrouping,
    hosting: Sequence[LayerHosting],
    traffic: TrafficCounter | None,
) -> dict[int, FeedForward | RoutedFeedForward]:
    """Returns one part per layer, not yet initialised; arguments as in :func:`distmoe.models.build.build_model`.

    Layers that are routed as a whole (``unit: block``) have no entry: each of their task groups has a part of its own.

    Raises:
        ConfigError: If the grouping or the hosting is for another number of routed layers, or experts do not divide.
    """
    routed = routed_layers(config.moe, shape.num_layers)
    if not len(routed) == grouping.num_layers == len(hosting):
        raise ConfigError(
            "the task grouping is for another number of routed layers",
            got=f"{grouping.num_layers} partition(s), hosting of {len(hosting)} layer(s)",
            expected=f"{len(routed)}, for the routed layers {list(routed)}",
            remedy="give one partition per routed layer in structure.grouping, or change model.moe.layers",
        )
    parts: dict[int, FeedForward | RoutedFeedForward] = {}
    for index in range(shape.num_layers):
        if config.moe is None or index not in routed:
            parts[index] = FeedForward(shape.hidden_size, shape.intermediate_size, shape.activation)
        elif config.moe.unit == "ffn":
            routed_index = routed.index(index)
            parts[index] = build_routed_feed_forward(
                config.moe,
                layer_index=index,
                routed_index=routed_index,
                hidden_size=shape.hidden_size,
                intermediate_size=shape.intermediate_size,
                activation=shape.activation,
                tasks=tasks,
                partition=grouping.layers[routed_index],
                hosting=hosting[routed_index],
                activation_checkpointing=config.activation_checkpointing,
                traffic=traffic,
            )
    return parts


def reset_feed_forward(
    feed_forward: FeedForward | RoutedFeedForward, seed: int, name: str, std: float, alike: bool
) -> None:
    """Fresh weights from the streams of their names; ``alike``: all pools from the first's."""
    if not isinstance(feed_forward, RoutedFeedForward):
        feed_forward.reset(seed, name, std)
        return
    feed_forward.gate.reset(seed, f"{name}.gate")
    for key, pool in feed_forward.pools.items():
        pool.reset(seed, f"{name}.pools.{FIRST_POOL if alike else key}", std)  # type: ignore[operator, union-attr]
    if feed_forward.shared_mlp is not None:
        feed_forward.shared_mlp.reset(seed, f"{name}.shared_mlp", std)
