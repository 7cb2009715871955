"""Configuration of a decoder: what it has beyond the keys that every model has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distmoe.config import Section
from distmoe.nn.rotary import RotaryConfig


class DecoderConfig(Section):
    num_kv_heads: int | None = Field(
        None, gt=0, description="Key-value heads, each shared by num_heads / this query heads; null: num_heads."
    )
    head_size: int | None = Field(None, gt=0, description="Width of a head, even; null: hidden_size / num_heads.")
    norm_eps: float = Field(1e-6, gt=0, description="Epsilon of every RMSNorm.")
    qk_norm: bool = Field(False, description="RMSNorm over each query and key head before rotation (Qwen3).")
    attention_bias: bool = Field(False, description="Biases of the query, key and value projections (Qwen2).")
    rotary: RotaryConfig = Field(default_factory=RotaryConfig)
    sliding_window: int | None = Field(
        None, gt=0, description="Tokens that a token sees, itself included; null: all before it."
    )
    head: Literal["tied", "shared", "per_task"] = Field(
        "tied", description="Output head: the token table, one table of its own for all tasks, or one per task."
    )
