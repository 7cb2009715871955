"""Configuration of conditional modules (CA-MTL, arXiv 2009.09139; the options are distmoe's)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distmoe.config import Section, leaves
from distmoe.errors import ConfigError

LayerChoice = Literal["upper", "top", "all"] | list[int]


class ConditionalAttentionConfig(Section):
    enabled: bool = Field(True, description="Task-specific bias on attention scores, in blocks on the diagonal.")
    layers: LayerChoice = Field("upper", description="Layers that have it (0-based); upper: the upper half.")
    block_side: int = Field(16, gt=0, description="Side of a block; a position sees the bias of its own block only.")
    max_length: int = Field(
        128, gt=0, description="Positions that have a bias; it is 0 beyond. Shorter batches crop it."
    )
    form: Literal["vector", "full"] = Field(
        "vector",
        description="Generated entries: block_side (for all rows of a block), or its square (the paper's form).",
    )


class ConditionalAlignmentConfig(Section):
    enabled: bool = Field(True, description="Task-specific scale and shift of the embedding output.")


class ConditionalLayerNormConfig(Section):
    enabled: bool = Field(True, description="Task-specific weight and bias of both LayerNorms of a layer.")
    layers: LayerChoice = Field("upper", description="Layers that have it (0-based); upper: the upper half.")
    form: Literal["scale_and_bias", "scale_only"] = Field("scale_and_bias", description="What is task-specific.")


class ConditionalBottleneckConfig(Section):
    enabled: bool = Field(True, description="Task-modulated adapter on the output of a layer.")
    layers: LayerChoice = Field("top", description="Layers that have it (0-based); top: the last one.")
    size: int | None = Field(None, gt=0, description="Width; null: a third of the model width, rounded down.")
    activation: str = Field("gelu", description="Activation of the adapter.")


class ConditionalConfig(Section):
    mode: Literal["distmoe", "repo"] = Field(
        "distmoe",
        description="distmoe: exactly the unconditioned model before training. repo: the published code's structure "
        "and fresh values; of the keys below it reads repo_layout, condition_on and attention.max_length.",
    )
    repo_layout: Literal["base", "large"] = Field(
        "base",
        description="Only mode repo: an adapter at the top (published for BERT-base), or a chain of adapters over all "
        "layers that makes the output (BERT-large).",
    )
    condition_from: Literal["embeddings", "first_trainable"] = Field(
        "embeddings",
        description="embeddings: also what is frozen may be conditioned. first_trainable: nothing below the lowest "
        "layer that model.freeze leaves trainable, so no gradient crosses frozen layers.",
    )
    condition_on: Literal["task", "random_task", "one_task"] = Field(
        "task",
        description="Task whose modulations an example gets: its own, or, as controls, one drawn from the example's "
        "number (as much noise, no task), or the first task for all (as many parameters, no task).",
    )
    embedding_size: int = Field(64, gt=0, description="Width of a task embedding (mode repo: the model width).")
    generator: Literal["linear", "table"] = Field(
        "linear",
        description="Makes the modulations: linear in the task embedding, or a free table row per task (the control).",
    )
    attention: ConditionalAttentionConfig = Field(default_factory=ConditionalAttentionConfig)
    alignment: ConditionalAlignmentConfig = Field(default_factory=ConditionalAlignmentConfig)
    layer_norm: ConditionalLayerNormConfig = Field(default_factory=ConditionalLayerNormConfig)
    bottleneck: ConditionalBottleneckConfig = Field(default_factory=ConditionalBottleneckConfig)

    def model_post_init(self, _context: object) -> None:
        """Refuses combinations that cannot work, whatever the model.

        Raises:
            ConfigError: If nothing is enabled, a block is larger than what it divides, or keys are set that mode
                ``repo`` does not read.
        """
        if self.mode == "repo":
            self._refuse_unread_keys()
        elif not any(part.enabled for part in (self.attention, self.alignment, self.layer_norm, self.bottleneck)):
            raise ConfigError(
                "all conditional modules are switched off",
                got="attention, alignment, layer_norm and bottleneck with enabled=false",
                expected="at least one of them enabled",
                remedy="set model.conditional=null for a model without conditional modules",
            )
        attention = self.attention
        if self.mode == "distmoe" and attention.enabled and attention.block_side > attention.max_length:
            raise ConfigError(
                "a block of conditional attention is larger than the attention bias",
                got=f"block_side {attention.block_side}, max_length {attention.max_length}",
                expected=f"block_side <= {attention.max_length}",
                remedy="lower model.conditional.attention.block_side, or raise model.conditional.attention.max_length",
            )

    def _refuse_unread_keys(self) -> None:
        """In mode ``repo`` the published code decides; a key that differs from its default would be ignored."""
        read = {"mode", "repo_layout", "condition_on", "attention.max_length"}
        defaults = leaves(ConditionalConfig.model_construct())
        unread = sorted(key for key, value in leaves(self).items() if key not in read and value != defaults[key])
        if unread:
            raise ConfigError(
                "mode repo takes its structure from the published code",
                got=f"other values for {', '.join(unread)}",
                expected="no other keys than mode, repo_layout, condition_on and attention.max_length",
                remedy="remove these keys below model.conditional, or set model.conditional.mode=distmoe",
            )
