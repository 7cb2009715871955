"""The published models as modules without weights (torch's meta device), to count them.

What is counted are distmoe's own modules in mode ``repo``, so that their structure cannot drift from the published
one unnoticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from distmoe.nn.attention import SelfAttention
from distmoe.nn.conditional.attention import ConditionalAttentionBias
from distmoe.nn.conditional.build import LayerParts, build_conditional
from distmoe.nn.conditional.config import ConditionalConfig
from distmoe.nn.conditional.module import conditional_parameters
from distmoe.nn.embeddings import EncoderEmbeddings
from distmoe.nn.feed_forward import FeedForward


@dataclass(frozen=True, kw_only=True)
class PublishedSize:
    """A model of the published experiments: cased BERT, nine GLUE tasks (WNLI included), 128 positions."""

    layout: Literal["base", "large"]
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocab_size: int = 28_996
    max_positions: int = 512
    max_length: int = 128
    head_outputs: tuple[int, ...] = (2, 2, 2, 2, 1, 3, 2, 2, 2)


BASE = PublishedSize(layout="base", hidden_size=768, num_layers=12, num_heads=12, intermediate_size=3072)
LARGE = PublishedSize(layout="large", hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096)
HEADS = ("heads.weight", "heads.bias")


def published_model(size: PublishedSize, *, conditional: bool = True) -> nn.ModuleDict:
    """Returns the modules of a published model on the meta device: shapes without weights, to be counted.

    Args:
        size: Which model.
        conditional: False: the plain BERT encoder with its pooler, and no heads.
    """
    width = size.hidden_size
    with torch.device("meta"):
        model = nn.ModuleDict(
            {
                "embeddings": EncoderEmbeddings(
                    vocab_size=size.vocab_size,
                    max_positions=size.max_positions,
                    num_token_types=2,
                    hidden_size=width,
                    position_offset=0,
                    layer_norm_eps=1e-12,
                    dropout=0.1,
                ),
                "pooler": nn.Linear(width, width),
            }
        )
        plain = (LayerParts(None, None, None, None),) * size.num_layers
        if not conditional:
            model["layers"] = nn.ModuleList(_published_layer(size, part) for part in plain)
            return model
        config = ConditionalConfig.model_validate(
            {"mode": "repo", "repo_layout": size.layout, "attention": {"max_length": size.max_length}}
        )
        parts = build_conditional(
            config,
            num_tasks=len(size.head_outputs),
            hidden_size=width,
            num_layers=size.num_layers,
            layer_norm_eps=1e-12,
        )
        model["layers"] = nn.ModuleList(_published_layer(size, part) for part in parts.layers)
        model["heads"] = nn.Linear(width, sum(size.head_outputs))
        model["conditioner"] = parts.conditioner
        optional = {"alignment": parts.alignment, "chain": parts.chain}
        model.update({name: part for name, part in optional.items() if part is not None})
    return model


def freeze_as_published(model: nn.ModuleDict, num_layers: int) -> None:
    """Freezes the embeddings and the first layers of a published model, with the published defect.

    Conditional modules stay trainable, except that the attention generators of frozen layers are frozen at random
    values: the published code exempts parameters by name, and theirs matched no exemption.
    """
    lower = nn.ModuleList([model["embeddings"], *list(model["layers"])[:num_layers]])  # type: ignore[call-overload]
    kept = conditional_parameters(lower).keys()
    for name, parameter in lower.named_parameters():
        parameter.requires_grad_(name in kept)
    for module in lower.modules():
        if isinstance(module, ConditionalAttentionBias):
            module.generator.requires_grad_(False)


def _published_layer(size: PublishedSize, parts: LayerParts) -> nn.ModuleDict:
    width = size.hidden_size
    layer = nn.ModuleDict(
        {
            "attention": SelfAttention(width, size.num_heads, dropout=0.1),
            "feed_forward": FeedForward(width, size.intermediate_size, "gelu"),
            "attention_norm": parts.attention_norm or nn.LayerNorm(width, eps=1e-12),
            "feed_forward_norm": parts.feed_forward_norm or nn.LayerNorm(width, eps=1e-12),
        }
    )
    optional = {"attention_bias": parts.attention_bias, "bottleneck": parts.bottleneck}
    layer.update({name: part for name, part in optional.items() if part is not None})
    return layer
