"""Builds and initialises the decoder of a run."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from distmoe.errors import ConfigError
from distmoe.models.config import ModelConfig
from distmoe.models.decoder import Decoder
from distmoe.models.decoder_layer import DecoderLayer
from distmoe.models.decoder_shape import DecoderShape
from distmoe.models.feed_forward import feed_forward_parts, reset_feed_forward
from distmoe.models.freezing import freeze_parts
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.models.token_heads import TokenHeads
from distmoe.nn.causal_attention import CausalAttention
from distmoe.nn.init import init_normal_
from distmoe.nn.rotary import Rotary
from distmoe.parallel.process_groups import LayerHosting
from distmoe.parallel.traffic import TrafficCounter
from distmoe.tasks import TaskGrouping, TaskSet


def build_decoder(
    config: ModelConfig,
    *,
    shape: DecoderShape,
    tasks: TaskSet,
    grouping: TaskGrouping,
    hosting: Sequence[LayerHosting],
    seed: int,
    traffic: TrafficCounter | None = None,
    alike: bool = False,
) -> MultiTaskDecoder:
    """As :func:`distmoe.models.build.build_model`, which calls it."""
    check_decoder(config, tasks)
    parts = feed_forward_parts(config, shape=shape, tasks=tasks, grouping=grouping, hosting=hosting, traffic=traffic)
    layers = [
        DecoderLayer(
            CausalAttention(
                hidden_size=shape.hidden_size,
                num_heads=shape.num_heads,
                num_kv_heads=shape.num_kv_heads,
                head_size=shape.head_size,
                bias=shape.attention_bias,
                out_bias=shape.attention_out_bias,
                norm_eps=shape.norm_eps if shape.qk_norm else None,
                dropout=config.attention_dropout,
            ),
            part,
            hidden_size=shape.hidden_size,
            norm_eps=shape.norm_eps,
            dropout=config.dropout,
            activation_checkpointing=config.activation_checkpointing,
        )
        for part in parts.values()
    ]
    decoder = Decoder(
        nn.Embedding(shape.vocab_size, shape.hidden_size),
        layers,
        nn.RMSNorm(shape.hidden_size, eps=shape.norm_eps),
        rotary=Rotary(shape.rotary, head_size=shape.head_size, max_positions=shape.max_positions),
        sliding_window=shape.sliding_window,
        dropout=config.dropout,
    )
    heads = TokenHeads(shape.hidden_size, shape.vocab_size, len(tasks), kind=config.decoder.head)
    model = MultiTaskDecoder(decoder, heads, shape=shape)
    _initialise(model, seed=seed, std=config.init_std, alike=alike)
    freeze_parts(model, config.freeze)
    return model


def check_decoder(config: ModelConfig, tasks: TaskSet) -> None:
    """Refuses what a decoder does not have, or must not do.

    Raises:
        ConfigError: If a task has no answer in tokens, a gate would look ahead, or modules of encoders are asked for.
    """
    others = [spec.name for spec in tasks if not spec.predicts_tokens]
    if others:
        raise ConfigError(
            "a decoder trains tasks whose answers are tokens",
            got=f"model.family=decoder with {', '.join(others)}",
            expected="tasks of type generation or language_modeling",
            remedy="choose other tasks.names, or set model.family=encoder",
        )
    if config.moe is not None and config.moe.unit == "block":
        raise ConfigError(
            "whole layers per task group belong to encoders",
            got="model.moe.unit=block with model.family=decoder",
            expected="model.moe.unit=ffn",
            remedy="set model.moe.unit=ffn",
        )
    if config.moe is not None and config.moe.gate.kind == "sequence":
        raise ConfigError(
            "this gate reads the mean over all tokens of an example, also over those that are to be predicted",
            got="model.moe.gate.kind=sequence with model.family=decoder",
            expected="a gate that reads the token or the task",
            remedy="set model.moe.gate.kind=task or token",
        )
    if config.conditional is not None:
        raise ConfigError(
            "task-conditioned modules belong to encoders",
            got="model.conditional with model.family=decoder",
            expected="model.conditional=null",
            remedy="set model.conditional=null",
        )


def _initialise(model: MultiTaskDecoder, *, seed: int, std: float, alike: bool) -> None:
    init_normal_(model.decoder.embeddings.weight, seed=seed, name="decoder.embeddings.weight", std=std)
    for index, layer in enumerate(model.decoder.layers):
        name = f"decoder.layers.{index}"
        layer.attention.reset(seed, f"{name}.attention", std)  # type: ignore[operator, union-attr]
        reset_feed_forward(layer.feed_forward, seed, f"{name}.feed_forward", std, alike)  # type: ignore[arg-type]
    model.heads.reset(seed, "heads", std)
    # RMSNorms start with weight 1, which is how their constructor leaves them.
