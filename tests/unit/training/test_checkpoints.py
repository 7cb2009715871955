"""What a run takes from a checkpoint besides weights and moments; the engine is a stand-in."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distmoe.checkpoint import store
from distmoe.checkpoint.config import CheckpointConfig
from distmoe.checkpoint.manifest import MANIFEST_NAME, Manifest
from distmoe.checkpoint.saver import Saver
from distmoe.checkpoint.store import LoadedState
from distmoe.parallel.rank_grid import RankGrid
from distmoe.seed import seed_all
from distmoe.tasks import TaskGrouping
from distmoe.training.checkpoints import Checkpoints
from distmoe.training.config import RunConfig
from distmoe.training.selection import BestScore
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
    def check(*_: Any, checksums: bool, **__: Any) -> Manifest:
        assert not checksums, "set-up has compared them"
        return loaded.manifest

    monkeypatch.setattr(store, "check", check)
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
        saver=Saver(keep=lambda root: None),
        grid=RankGrid(rank, 8),
    ).load(Path("checkpoints/step_5"))
    return loader, journal, state


class _Engine:
    """Writes folders and remembers in which order."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def save_state(self, root: Path, **_: Any) -> Path:
        self.written.append("distmoe")
        (root / "step_5").mkdir(parents=True, exist_ok=True)
        (root / "step_5" / MANIFEST_NAME).touch()
        return root / "step_5"

    def save_deepspeed(self, root: Path) -> Path:
        self.written.append("deepspeed")
        (root / "step_5").mkdir(parents=True)
        return root / "step_5"


def _saving(root: Path, **options: Any) -> tuple[_Engine, list[str]]:
    engine, said = _Engine(), list[str]()
    empty = SimpleNamespace(state_dict=dict, say=said.append)
    Checkpoints(
        root / "checkpoints",
        config=RunConfig(checkpoint=CheckpointConfig(**options)),
        engine=engine,  # type: ignore[arg-type]
        loader=empty,  # type: ignore[arg-type]
        journal=empty,  # type: ignore[arg-type]
        state=TrainerState(),
        tasks=TASKS,
        grouping=TaskGrouping.one_group(len(TASKS), 1),
        saver=Saver(keep=lambda root: None),
        grid=RankGrid(),
    ).save()
    return engine, said


def test_deepspeeds_folder_is_written_beside_and_follows_the_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "deepspeed" / "step_4").mkdir(parents=True)
    engine, said = _saving(tmp_path, format="deepspeed")
    assert engine.written == ["distmoe", "deepspeed"]
    assert said == [f"saved {tmp_path}/deepspeed/step_5 for DeepSpeed"]
    assert [path.name for path in (tmp_path / "deepspeed").iterdir()] == ["step_5"]
    assert _saving(tmp_path)[0].written == ["distmoe"]


def test_a_save_beside_training_says_how_long_it_held(tmp_path: Path) -> None:
    [line] = _saving(tmp_path, asynchronous=True)[1]
    assert re.fullmatch(rf"saving {tmp_path}/checkpoints/step_5 while training goes on; held for \d\.\d\d s", line)


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
    assert "the number of data or tensor ranks has changed" in caplog.text


def test_an_edited_checkpoint_begins_a_run_with_its_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seed_all(2)
    loader, journal, state = _load(monkeypatch, LoadedState(MANIFEST, {}, {}))
    drawn = torch.rand(3)
    assert (loader.state, journal.state, state) == (None, None, TrainerState())
    seed_all(2)
    assert torch.equal(drawn, torch.rand(3))


def test_random_states_of_another_tensor_degree_are_not_taken_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As many ranks as now, but pairs of them were tensor neighbours, which draw alike; data ranks must not."""
    written = replace(MANIFEST, topology={"tensor": 2})
    with caplog.at_level(logging.WARNING):
        _load(monkeypatch, LoadedState(written, _full(), rng_state()), rank=3)
    drawn = torch.rand(3)
    seed_all(0, "resumed", 5, 3)
    assert torch.equal(drawn, torch.rand(3))
    assert "the number of data or tensor ranks has changed" in caplog.text


def _best(
    root: Path, monkeypatch: pytest.MonkeyPatch, *folders: str, keep_best: bool = True
) -> tuple[int | None, list[Path]]:
    """What is loaded where step 5 was the best, 9 is the last, and these folders are complete checkpoints."""
    for name in folders:
        (root / name).mkdir(parents=True)
        (root / name / MANIFEST_NAME).touch()
    monkeypatch.setattr(store, "check", lambda *_, **__: MANIFEST)
    read: list[Path] = []
    empty: Any = SimpleNamespace()
    made = Checkpoints(
        root,
        config=RunConfig(checkpoint=CheckpointConfig(keep_best=keep_best)),
        engine=SimpleNamespace(load_state=lambda folder, *, manifest: read.append(folder)),  # type: ignore[arg-type]
        loader=empty,
        journal=empty,
        state=TrainerState(step=9, best=BestScore(score=0.5, step=5)),
        tasks=TASKS,
        grouping=TaskGrouping.one_group(len(TASKS), 1),
        saver=Saver(keep=lambda root: None),
        grid=RankGrid(),
    )
    return made.load_best_weights(), read


@pytest.mark.parametrize("name", ["step_5", "step_5.old"])
def test_the_best_weights_are_found_also_after_a_save_killed_between_its_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert _best(tmp_path, monkeypatch, name, "step_9") == (5, [tmp_path / name])


def test_best_weights_that_the_run_does_not_have_are_missed_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert _best(tmp_path, monkeypatch, "step_9", keep_best=False) == (None, [])
    assert caplog.text == ""
    assert _best(tmp_path, monkeypatch) == (None, [])
    assert f"step_5, is not in {tmp_path}: the last weights are scored" in caplog.text
