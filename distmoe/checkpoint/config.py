"""Configuration of checkpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distmoe.config import Section


class CheckpointConfig(Section):
    every: int | None = Field(
        None,
        gt=0,
        description="Optimizer steps between checkpoints; null: only at the end and at a new best evaluation.",
    )
    keep_last: int = Field(2, gt=0, description="Newest checkpoints that are kept, besides the best.")
    keep_best: bool = Field(True, description="Keeps the checkpoint with the best validation macro score.")
    asynchronous: bool = Field(
        False,
        description="Training goes on while files are written. Costs host memory for one copy of what a rank owns.",
    )
    format: Literal["distmoe", "deepspeed"] = Field(
        "distmoe",
        description="deepspeed: DeepSpeed's own folder as well, in runs/NAME/deepspeed, where DeepSpeed supports the "
        "arrangement.",
    )
