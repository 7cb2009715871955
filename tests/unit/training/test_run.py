"""What a run does with the checkpoint that is being written when it ends or is rebuilt."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distmoe.errors import CheckpointError
from distmoe.parallel.watch.whereabouts import Whereabouts
from distmoe.training import run as run_module
from distmoe.training.agreement import Agreement
from distmoe.training.config import RunConfig, RunSection
from distmoe.training.run import _complete
from distmoe.training.stop_signal import StopSignal
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


@pytest.mark.parametrize("ended", ["Finished", "Stopped by a signal"])
def test_a_run_that_has_ended_is_dismantled_when_all_ranks_have_scored(
    ended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study trains many runs in one process: engines that stay would fill its memory."""
    events: list[str] = []
    config = RunConfig(run=RunSection(output_dir=str(tmp_path), report=False))

    class Alone(Agreement):
        def barrier(self) -> None:
            events.append("barrier")

    run = SimpleNamespace(
        state=SimpleNamespace(step=3),
        journal=SimpleNamespace(close=lambda: events.append("close")),
        dismantle=lambda: events.append("dismantle"),
    )
    workshop = SimpleNamespace(saver=SimpleNamespace(wait=lambda: events.append("failed")))
    monkeypatch.setattr(run_module, "build_run", lambda *_, **__: (run, workshop))
    monkeypatch.setattr(run_module, "train_in_phases", lambda *_: (run, ended))
    monkeypatch.setattr(run_module, "_finish", lambda *_, **__: events.append("finish"))
    env: Any = SimpleNamespace(rank=0, world_size=1, local_world_size=1)
    outcome = run_module._train_alone(
        config, resume="auto", stop=StopSignal(), env=env, agreement=Alone(), whereabouts=Whereabouts()
    )
    assert (outcome.ended, outcome.step) == (ended, 3)
    assert events == ["finish", "barrier", "dismantle", "close"]
