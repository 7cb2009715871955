"""What a run does with the checkpoint that is being written when it ends or is rebuilt."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from distmoe.errors import CheckpointError
from distmoe.training.run import _complete
from distmoe.training.workshop import Run


def test_a_run_is_dismantled_after_its_checkpoint_is_complete() -> None:
    events: list[str] = []

    def named(name: str) -> SimpleNamespace:
        return SimpleNamespace(wait=lambda: events.append("wait"), destroy=lambda: events.append(name))

    parts = SimpleNamespace(
        checkpoints=named("checkpoints"),
        trainer=SimpleNamespace(engine=named("engine")),
        process_groups=named("process groups"),
    )
    Run.dismantle(parts)  # type: ignore[arg-type]
    assert events == ["wait", "engine", "process groups"]


def test_a_run_that_failed_lets_its_checkpoint_become_complete_and_names_a_lost_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    waited: list[int] = []
    _complete(SimpleNamespace(wait=lambda: waited.append(1)))  # type: ignore[arg-type]
    assert waited == [1]
    assert caplog.text == ""

    def fail() -> None:
        raise CheckpointError("step 4 cannot be saved", got="rank 1: gone", expected="all ranks", remedy="resume")

    with caplog.at_level(logging.WARNING):
        _complete(SimpleNamespace(wait=fail))  # type: ignore[arg-type]
    assert "the checkpoint that was being written is lost: step 4 cannot be saved" in caplog.text
    assert "rank 1: gone" in caplog.text
