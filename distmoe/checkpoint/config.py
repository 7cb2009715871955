"""Configuration of checkpoints."""

from __future__ import annotations

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
