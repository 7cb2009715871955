"""Builds and initialises the model of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Required, TypedDict, Unpack, overload

import torch
from torch import nn

from distmoe.errors import ConfigError
from distmoe.models.build_decoder import build_decoder, check_decoder
from distmoe.models.config import ModelConfig
from distmoe.models.decoder_shape import DecoderShape
from distmoe.models.encoder import Encoder
from distmoe.models.feed_forward import FIRST_POOL, feed_forward_parts, reset_feed_forward
from distmoe.models.freezing import first_trainable_layer, freeze_parts, frozen_layers
from distmoe.models.heads import TaskHeads
from distmoe.models.layer import EncoderLayer
from distmoe.models.layer_plan import routed_layers
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.models.pooler import Pooler
from distmoe.models.routed_layer import RoutedLayer
from distmoe.models.shape import EncoderShape, ModelShape
from distmoe.moe.layer import RoutedFeedForward
from distmoe.nn.attention import SelfAttention
from distmoe.nn.conditional.build import ConditionalParts, LayerParts, build_conditional
from distmoe.nn.conditional.module import reset_conditional
from distmoe.nn.embeddings import EncoderEmbeddings
from distmoe.nn.feed_forward import FeedForward
from distmoe.parallel.process_groups import LayerHosting, single_process
from distmoe.parallel.traffic import TrafficCounter
from distmoe.tasks import TaskGrouping, TaskSet

MultiTaskModel = MultiTaskEncoder | MultiTaskDecoder


class _Rest(TypedDict, total=False):
    """The other arguments of :func:`build_model`, for its overloads."""

    tasks: Required[TaskSet]
    grouping: Required[TaskGrouping]
    hosting: Required[Sequence[LayerHosting]]
    seed: Required[int]
    traffic: TrafficCounter | None
    alike: bool


@overload
def build_model(config: ModelConfig, *, shape: EncoderShape, **rest: Unpack[_Rest]) -> MultiTaskEncoder: ...
@overload
def build_model(config: ModelConfig, *, shape: DecoderShape, **rest: Unpack[_Rest]) -> MultiTaskDecoder: ...
@overload
def build_model(config: ModelConfig, *, shape: ModelShape, **rest: Unpack[_Rest]) -> MultiTaskModel: ...
def build_model(
    config: ModelConfig,
    *,
    shape: ModelShape,
    tasks: TaskSet,
    grouping: TaskGrouping,
    hosting: Sequence[LayerHosting],
    seed: int,
    traffic: TrafficCounter | None = None,
    alike: bool = False,
) -> MultiTaskModel:
    """Returns this rank's part of the model, freshly initialised from named streams.

    Values depend on the seed and on names only: dense parameters are equal on all ranks, and an expert is the same
    wherever it is hosted. A pretrained model is loaded over it afterwards.

    Args:
        config: Section ``model``.
        shape: From :func:`~distmoe.models.shape.resolve_shape`.
        tasks: All tasks of the run.
        grouping: Who shares the routed layers; one partition per routed layer.
        hosting: What this rank hosts, per routed layer.
        seed: Seed of the run.
        traffic: Counts what all routed layers send; None: one of its own per layer.
        alike: All task groups of a layer start as copies of one. Structural learning needs it: task groups with
            different starts never become similar.

    Raises:
        ConfigError: If the grouping or the hosting is for another number of routed layers, experts do not divide, or
            a frozen or conditioned layer does not exist, or a task does not belong to the family.
    """
    if isinstance(shape, DecoderShape):
        return build_decoder(
            config,
            shape=shape,
            tasks=tasks,
            grouping=grouping,
            hosting=hosting,
            seed=seed,
            traffic=traffic,
            alike=alike,
        )
    _check_tasks(tasks)
    parts = feed_forward_parts(config, shape=shape, tasks=tasks, grouping=grouping, hosting=hosting, traffic=traffic)
    conditional = _build_conditional(config, shape, num_tasks=len(tasks))
    layers: list[EncoderLayer | RoutedLayer] = []
    for index in range(shape.num_layers):
        if index in parts:
            conditioned = None if conditional is None else conditional.layers[index]
            layers.append(_build_layer(config, shape, parts[index], conditioned))
        else:
            layers.append(_build_routed_layer(config, shape, index, grouping=grouping, hosting=hosting))
    embeddings = EncoderEmbeddings(
        vocab_size=shape.vocab_size,
        max_positions=shape.max_positions,
        num_token_types=shape.num_token_types,
        hidden_size=shape.hidden_size,
        position_offset=shape.position_offset,
        layer_norm_eps=shape.layer_norm_eps,
        dropout=config.dropout,
    )
    final_norm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps) if shape.norm == "pre" else None
    model = MultiTaskEncoder(
        Encoder(embeddings, layers, final_norm, conditional),
        Pooler(shape.hidden_size, pooling=config.pooling),
        TaskHeads(shape.hidden_size, [spec.num_outputs for spec in tasks]),
        dropout=config.dropout,
        shape=shape,
    )
    initialise(model, seed=seed, std=config.init_std, alike=alike)
    freeze_parts(model, config.freeze)
    return model


def sketch_model(config: ModelConfig, *, shape: ModelShape, tasks: TaskSet, grouping: TaskGrouping) -> MultiTaskModel:
    """Returns the whole model on torch's meta device: it takes no memory, and refuses what building would refuse.

    Args:
        config: Section ``model``.
        shape: From :func:`~distmoe.models.shape.resolve_shape`.
        tasks: All tasks of the run.
        grouping: Who shares the routed layers.

    Raises:
        ConfigError: As :func:`build_model`.
    """
    with torch.device("meta"):
        hosting = single_process(grouping).hosting
        return build_model(config, shape=shape, tasks=tasks, grouping=grouping, hosting=hosting, seed=0)


def initialise(model: MultiTaskEncoder, *, seed: int, std: float, alike: bool = False) -> None:
    """Gives every parameter a fresh value from the stream of its full name; ``alike``: all pools from the first's."""
    model.encoder.embeddings.reset(seed, "encoder.embeddings", std)
    for index, layer in enumerate(model.encoder.layers):
        name = f"encoder.layers.{index}"
        if isinstance(layer, RoutedLayer):
            for key, variant in layer.variants.items():
                own = f"{name}.variants.{FIRST_POOL if alike else key}"
                reset_layer(variant, seed, own, std)  # type: ignore[arg-type]
        else:
            reset_layer(layer, seed, name, std, alike=alike)  # type: ignore[arg-type]
    reset_conditional(model.encoder, seed, "encoder", std)
    model.pooler.reset(seed, "pooler", std)
    model.heads.reset(seed, "heads", std)
    # LayerNorms start as the identity, which is how their constructor leaves them.


def reset_layer(layer: EncoderLayer, seed: int, name: str, std: float, *, alike: bool = False) -> None:
    """Fresh weights of one layer from the streams of its names; its LayerNorms are the identity from the start."""
    layer.attention.reset(seed, f"{name}.attention", std)
    reset_feed_forward(layer.feed_forward, seed, f"{name}.feed_forward", std, alike)


def _check_tasks(tasks: TaskSet) -> None:
    others = [spec.name for spec in tasks if spec.predicts_tokens]
    if others:
        raise ConfigError(
            "an encoder cannot answer in tokens",
            got=f"model.family=encoder with {', '.join(others)}",
            expected="tasks of type classification, pair_classification or regression",
            remedy="choose other tasks.names, or set model.family=decoder",
        )


def check_layers(config: ModelConfig, shape: ModelShape, tasks: TaskSet) -> None:
    """Refuses frozen layers, conditioned layers and tasks that do not fit the model, before anything is built.

    Raises:
        ConfigError: Naming the key.
    """
    frozen_layers(config.freeze, shape.num_layers)
    if isinstance(shape, DecoderShape):
        check_decoder(config, tasks)
        return
    _check_tasks(tasks)
    with torch.device("meta"):
        _build_conditional(config, shape, num_tasks=1)


def _build_conditional(config: ModelConfig, shape: EncoderShape, *, num_tasks: int) -> ConditionalParts | None:
    if config.conditional is None:
        return None
    first_layer = 0
    if config.conditional.condition_from == "first_trainable":
        first_layer = first_trainable_layer(config.freeze, shape.num_layers)
    return build_conditional(
        config.conditional,
        num_tasks=num_tasks,
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        layer_norm_eps=shape.layer_norm_eps,
        first_layer=first_layer,
    )


def build_plain_layer(config: ModelConfig, shape: EncoderShape) -> EncoderLayer:
    """A layer that knows of no task: dense, without conditional parts."""
    return _build_layer(config, shape, FeedForward(shape.hidden_size, shape.intermediate_size, shape.activation), None)


def _build_routed_layer(
    config: ModelConfig, shape: EncoderShape, index: int, *, grouping: TaskGrouping, hosting: Sequence[LayerHosting]
) -> RoutedLayer:
    routed_index = routed_layers(config.moe, shape.num_layers).index(index)
    variants = {f"g{own}": build_plain_layer(config, shape) for own in hosting[routed_index].task_groups}
    return RoutedLayer(variants, task_group_of=grouping.table(routed_index))


def _build_layer(
    config: ModelConfig, shape: EncoderShape, feed_forward: FeedForward | RoutedFeedForward, parts: LayerParts | None
) -> EncoderLayer:
    return EncoderLayer(
        SelfAttention(shape.hidden_size, shape.num_heads, dropout=config.attention_dropout),
        feed_forward,
        hidden_size=shape.hidden_size,
        norm=shape.norm,
        layer_norm_eps=shape.layer_norm_eps,
        dropout=config.dropout,
        activation_checkpointing=config.activation_checkpointing,
        conditional=parts,
    )
