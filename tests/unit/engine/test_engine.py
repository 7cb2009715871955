"""What the engine counts, on a stand-in for DeepSpeed's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

from distmoe.engine.engine import Engine


def test_a_step_without_an_update_counts_as_a_step_and_as_skipped() -> None:
    hosted: Any = SimpleNamespace(
        optimizer=None, zero_grad=lambda: None, gradient_accumulation_steps=lambda: 2, micro_steps=3, global_steps=4,
        skipped_steps=1,
    )  # fmt: skip
    settings: Any = SimpleNamespace(accumulation_steps=2)
    engine = Engine(hosted, nn.Linear(1, 1), settings=settings, optimizer=None, views={}, topology={})  # type: ignore[arg-type]
    engine.skip_step()
    assert (engine.global_steps, hosted.skipped_steps, hosted.micro_steps) == (5, 2, 4)
