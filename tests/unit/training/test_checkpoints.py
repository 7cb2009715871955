"""What a run takes from a checkpoint besides weights and moments; the engine is a stand-in."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distmoe.checkpoint import store
from distmoe.checkpoint.manifest import Manifest
from distmoe.checkpoint.store import LoadedState
from distmoe.seed import seed_all
from distmoe.tasks import TaskGrouping
from distmoe.training.checkpoints import Checkpoints
from distmoe.training.config import RunConfig
from distmoe.training.state import TrainerState, rng_state
from tests.unit.training.samples import TASKS

MANIFEST = Manifest(step=5, tasks=[], grouping={})


class _Recorder:
    """A loader or a journal that remembers what it was given."""

    def __init__(self) -> None:
        self.state: Any = None

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def _load(monkeypatch: pytest.MonkeyPatch, loaded: LoadedState, *, rank: int = 0) -> tuple[Any, Any, TrainerState]:
    monkeypatch.setattr(store, "check", lambda *_, **__: MANIFEST)
    loader, journal, state = _Recorder(), _Recorder(), TrainerState()
    Checkpoints(
        Path("checkpoints"),
        config=RunConfig(),
        engine=SimpleNamespace(load_state=lambda folder, *, manifest, load: loaded),  # type: ignore[arg-type]
        loader=loader,  # type: ignore[arg-type]
        journal=journal,  # type: ignore[arg-type]
        state=state,
        tasks=TASKS,
        grouping=TaskGrouping.one_group(len(TASKS), 1),
        rank=rank,
    ).load(Path("checkpoints/step_5"))
    return loader, journal, state


def _full() -> dict[str, Any]:
    return {"progress": TrainerState(step=5).state_dict(), "data": {"window": 2}, "journal": {"window": 3}}


def test_progress_data_journal_and_random_states_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    seed_all(1)
    saved, expected = rng_state(), torch.rand(3)
    loader, journal, state = _load(monkeypatch, LoadedState(MANIFEST, _full(), saved))
    assert (loader.state, journal.state, state.step) == ({"window": 2}, {"window": 3}, 5)
    assert torch.equal(torch.rand(3), expected)


def test_on_another_number_of_ranks_random_states_follow_seed_step_and_rank(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _load(monkeypatch, LoadedState(MANIFEST, _full(), None), rank=3)
    drawn = torch.rand(3)
    seed_all(0, "resumed", 5, 3)
    assert torch.equal(drawn, torch.rand(3))
    assert "the number of ranks has changed" in caplog.text


def test_an_edited_checkpoint_begins_a_run_with_its_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seed_all(2)
    loader, journal, state = _load(monkeypatch, LoadedState(MANIFEST, {}, {}))
    drawn = torch.rand(3)
    assert (loader.state, journal.state, state) == (None, None, TrainerState())
    seed_all(2)
    assert torch.equal(drawn, torch.rand(3))
