"""Configuration of a model: a pretrained folder or a shape, and its routed layers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distmoe.config import Section
from distmoe.models.decoder_config import DecoderConfig
from distmoe.moe.config import MoEConfig
from distmoe.nn.conditional.config import ConditionalConfig


class ModelConfig(Section):
    family: Literal["encoder", "decoder"] = Field(
        "encoder",
        description="encoder: classification and regression (BERT, RoBERTa); decoder: generation and language "
        "modelling (Llama, Mistral, Qwen2, Qwen3).",
    )
    pretrained: str | None = Field(
        None, description="Hugging Face folder of the family to start from; its shape wins over the keys below."
    )
    hidden_size: int = Field(128, gt=0, description="Model width D.")
    num_layers: int = Field(4, gt=0, description="Transformer layers.")
    num_heads: int = Field(4, gt=0, description="Attention heads; divides hidden_size.")
    intermediate_size: int = Field(512, gt=0, description="Dense feed-forward width F.")
    max_positions: int = Field(512, gt=0, description="Longest sequence; of an encoder, of its position table.")
    norm: Literal["post", "pre"] = Field(
        "post", description="Encoder: LayerNorm after (BERT) or before (pre-LN) each sub-layer."
    )
    layer_norm_eps: float = Field(1e-12, gt=0, description="Encoder: epsilon of LayerNorm.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of hidden states and heads.")
    attention_dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of attention weights.")
    pooling: Literal["cls", "mean"] = Field(
        "cls",
        description="Encoder: state that the heads read, the first token's or the mean over tokens; then dense + tanh.",
    )
    init_std: float = Field(0.02, gt=0, description="Standard deviation of fresh weights.")
    activation_checkpointing: bool = Field(
        False, description="Recompute attention and experts in backward; never repeats an all-to-all."
    )
    freeze: Literal["none", "embeddings", "lower_half", "body"] | list[int] = Field(
        "none",
        description="Trained parts that stay as they are: the embeddings, and with them the lower half of the "
        "layers or the listed layers (0-based); gates and conditional modules in them are trained. body: everything "
        "but heads and each task's own rows of gates and conditional tables.",
    )
    conditional: ConditionalConfig | None = Field(
        None, description="Task-conditioned modules (CA-MTL); null: none of them."
    )
    decoder: DecoderConfig = Field(default_factory=DecoderConfig)
    moe: MoEConfig | None = Field(default_factory=MoEConfig, description="null: a dense model.")
