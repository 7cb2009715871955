"""Configuration of optimizer and learning-rate schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distmoe.config import Section


class OptimizerConfig(Section):
    lr: float = Field(5e-4, gt=0, description="Peak learning rate of AdamW.")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        default_factory=lambda: [0.9, 0.999], min_length=2, max_length=2, description="Decay rates of the moments."
    )
    eps: float = Field(1e-8, gt=0, description="Added to the denominator.")
    weight_decay: float = Field(
        0.01, ge=0, description="Decoupled weight decay; biases, norms and embeddings of tasks are exempt."
    )
    gradient_clipping: float = Field(1.0, ge=0, description="Largest global gradient norm; 0: no clipping.")
    gate_lr_scale: float = Field(
        10.0, gt=0, description="Learning rate of gates and task tensors, times lr; 10 to 100 so that routes can move."
    )
    head_lr_scale: float = Field(1.0, gt=0, description="Learning rate of task heads, times lr.")


class ScheduleConfig(Section):
    num_steps: int = Field(300, gt=0, description="Optimizer steps of the run.")
    kind: Literal["linear", "cosine", "constant"] = Field("linear", description="Decay after warm-up.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of num_steps with linear warm-up.")
    final_scale: float = Field(0.0, ge=0, le=1, description="Learning rate at the end, as a share of the peak.")
