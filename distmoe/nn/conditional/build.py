"""Builds the conditional parts of an encoder from their configuration.

How an encoder takes them in::

    conditioning = conditioner(task_ids_B)                    # once per forward
    x_BSD = alignment(embeddings(...), conditioning)          # where present
    bias = layer.attention_bias(conditioning, mask, dtype=x_BSD.dtype)   # in place of the mask
    x_BSD = layer.attention_norm(x_BSD + ..., conditioning)   # in place of the LayerNorm of that name
    x_BSD = layer.bottleneck(x_BSD, attended_BSD, conditioning)          # on the layer's output
    x_BSD = chain(outputs_of_all_layers, conditioning)        # mode repo, layout large
"""

from __future__ import annotations

from dataclasses import dataclass

from distmoe.nn.conditional.alignment import ConditionalAlignment
from distmoe.nn.conditional.attention import ConditionalAttentionBias
from distmoe.nn.conditional.bottleneck import ConditionalBottleneck
from distmoe.nn.conditional.config import ConditionalConfig
from distmoe.nn.conditional.generator import GeneratorFactory
from distmoe.nn.conditional.layer_norm import ConditionalLayerNorm, LayerNormForm
from distmoe.nn.conditional.plan import ConditionalPlan, conditional_plan
from distmoe.nn.conditional.published import PublishedChain, PublishedTopAdapter, published_block_side
from distmoe.nn.conditional.task_embedding import TaskConditioner


@dataclass(frozen=True)
class LayerParts:
    """Conditional parts of one layer; None where the layer keeps its plain one or has none.

    Attributes:
        attention_bias: Makes the float mask of attention.
        attention_norm: Replaces the LayerNorm of attention.
        feed_forward_norm: Replaces the LayerNorm of the feed-forward part.
        bottleneck: Acts on the layer's output.
    """

    attention_bias: ConditionalAttentionBias | None
    attention_norm: ConditionalLayerNorm | None
    feed_forward_norm: ConditionalLayerNorm | None
    bottleneck: ConditionalBottleneck | PublishedTopAdapter | None


@dataclass(frozen=True)
class ConditionalParts:
    """Conditional parts of an encoder, not yet initialised, to be registered by it under its own names.

    Attributes:
        conditioner: From task ids to conditioning.
        alignment: Acts on the embedding output.
        layers: One per layer, shallow to deep.
        chain: Makes the output from those of all layers.
    """

    conditioner: TaskConditioner
    alignment: ConditionalAlignment | None
    layers: tuple[LayerParts, ...]
    chain: PublishedChain | None


def build_conditional(
    config: ConditionalConfig,
    *,
    num_tasks: int,
    hidden_size: int,
    num_layers: int,
    layer_norm_eps: float,
    first_layer: int = 0,
) -> ConditionalParts:
    """Returns the parts on torch's default device; call :func:`~distmoe.nn.conditional.module.reset_conditional`.

    Args:
        config: Section of the conditional modules.
        num_tasks: Rows of the task tables.
        hidden_size: Model width D.
        num_layers: Layers of the model.
        layer_norm_eps: Epsilon of the LayerNorms.
        first_layer: Lowest layer that may depend on the task id; see
            :func:`~distmoe.nn.conditional.plan.conditional_plan`.

    Raises:
        ConfigError: If the configuration does not fit the model.
    """
    published = config.mode == "repo"
    plan = conditional_plan(config, num_layers, first_layer=first_layer)
    embedding_size = hidden_size if published else config.embedding_size
    generators = GeneratorFactory(config.generator, num_tasks, embedding_size, zero=not published)
    return ConditionalParts(
        TaskConditioner(
            num_tasks,
            None if config.generator == "table" else embedding_size,
            published=published,
            condition_on=config.condition_on,
        ),
        ConditionalAlignment(hidden_size, generators) if plan.alignment else None,
        tuple(
            _layer_parts(config, plan, index, hidden_size=hidden_size, eps=layer_norm_eps, generators=generators)
            for index in range(num_layers)
        ),
        PublishedChain(hidden_size, num_layers, generators) if plan.chain else None,
    )


def _layer_parts(
    config: ConditionalConfig,
    plan: ConditionalPlan,
    index: int,
    *,
    hidden_size: int,
    eps: float,
    generators: GeneratorFactory,
) -> LayerParts:
    return LayerParts(
        _attention_bias(config, hidden_size, generators) if index in plan.attention else None,
        _layer_norm(config, hidden_size, eps, generators) if index in plan.layer_norm else None,
        _layer_norm(config, hidden_size, eps, generators) if index in plan.layer_norm else None,
        _bottleneck(config, hidden_size, eps, generators) if index in plan.bottleneck else None,
    )


def _attention_bias(
    config: ConditionalConfig, hidden_size: int, generators: GeneratorFactory
) -> ConditionalAttentionBias:
    attention = config.attention
    side = published_block_side(hidden_size, attention.max_length) if config.mode == "repo" else attention.block_side
    return ConditionalAttentionBias(
        max_length=attention.max_length, block_side=side, form=attention.form, generators=generators
    )


def _layer_norm(
    config: ConditionalConfig, hidden_size: int, eps: float, generators: GeneratorFactory
) -> ConditionalLayerNorm:
    form: LayerNormForm = "published" if config.mode == "repo" else config.layer_norm.form
    return ConditionalLayerNorm(hidden_size, eps=eps, form=form, generators=generators)


def _bottleneck(
    config: ConditionalConfig, hidden_size: int, eps: float, generators: GeneratorFactory
) -> ConditionalBottleneck | PublishedTopAdapter:
    if config.mode == "repo":
        return PublishedTopAdapter(hidden_size, layer_norm_eps=eps, generators=generators)
    return ConditionalBottleneck(
        hidden_size,
        config.bottleneck.size or max(1, hidden_size // 3),
        activation=config.bottleneck.activation,
        generators=generators,
    )
