import builtins
import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distmoe.errors import ConfigError
from distmoe.training.monitor import build_monitor, finite, require_trackers, scalars, truncate

LINES = [
    {"step": 10, "loss": 1.0},
    {"step": 20, "loss": 0.5},
    {"step": 20, "evaluation": {"macro": 0.1}},
    {"step": 30, "loss": 0.4},
]


def write(path: Path, lines: list[dict], tail: str = "") -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rank_0_appends_lines_and_other_ranks_write_nothing(tmp_path: Path) -> None:
    for rank in (1, 0, 0):
        monitor = build_monitor(tmp_path, rank=rank, name="r", config={}, tensorboard=False, wandb=False)
        monitor.write({"step": rank, "loss": 0.1})
        monitor.close()
    assert read(tmp_path / "metrics.jsonl") == [{"step": 0, "loss": 0.1}] * 2


def test_tensorboard_gets_scalars(tmp_path: Path) -> None:
    monitor = build_monitor(tmp_path, rank=0, name="r", config={}, tensorboard=True, wandb=False)
    monitor.write({"step": 1, "loss": 0.1})
    monitor.close()
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_scores_of_an_earlier_step_reach_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is a value: wandb drops lines whose own step is below its newest one."""
    calls: list[tuple[Any, ...]] = []
    run = SimpleNamespace(
        define_metric=lambda name, **more: calls.append((name, more)),
        log=lambda values, **more: calls.append((values, more)),
        finish=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run))
    monitor = build_monitor(tmp_path, rank=0, name="r", config={}, tensorboard=False, wandb=True)
    monitor.write({"step": 20, "loss": 0.5})
    monitor.write({"step": 10, "evaluation": {"split": "test", "macro": 0.25}})
    monitor.close()
    assert calls == [
        ("train_step", {}),
        ("*", {"step_metric": "train_step"}),
        ({"loss": 0.5, "train_step": 20}, {}),
        ({"evaluation/test/macro": 0.25, "train_step": 10}, {}),
    ]


def test_a_resumed_curve_shows_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done, steps in ((0, (1, 2, 3)), (1, (2, 3, 4))):
        monkeypatch.setattr(time, "time", lambda done=done: 1e9 + done)  # event files are named by whole seconds
        monitor = build_monitor(tmp_path, rank=0, name="r", config={}, tensorboard=True, wandb=False, step=done)
        for step in steps:
            monitor.write({"step": step, "loss": 1.0})
        monitor.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


def test_numbers_that_are_not_finite_become_null_at_any_depth() -> None:
    record = {"a": math.inf, "b": {"c": [1.0, math.nan, (-math.inf, 2)]}, "d": "inf", "e": None}
    assert finite(record) == {"a": None, "b": {"c": [1.0, None, [None, 2]]}, "d": "inf", "e": None}


def without(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def fake(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(module):
            raise ImportError(f"No module named {module!r}")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)


def test_without_tensorboard_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without("torch.utils.tensorboard", monkeypatch)
    monitor = build_monitor(tmp_path, rank=0, name="r", config={}, tensorboard=True, wandb=False)
    monitor.write({"step": 1, "loss": 0.1})
    assert len(read(tmp_path / "metrics.jsonl")) == 1


def test_wandb_is_refused_when_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    without("wandb", monkeypatch)
    require_trackers(wandb=False)
    with pytest.raises(ConfigError, match=r"(?s)run.wandb is set.*remedy:.*run.wandb=false"):
        require_trackers(wandb=True)


def test_scalars_are_flattened_and_lists_left_out() -> None:
    record = {
        "step": 3,
        "loss": 1,
        "tasks": {"a": {"loss": None, "examples": 2}},
        "routing": {"layer_1": {"load": [1, 2]}},
    }
    assert dict(scalars(record)) == {"loss": 1.0, "tasks/a/examples": 2.0}


def test_test_scores_are_curves_of_their_own() -> None:
    """Also those under shift: the validation's curve has no other points."""
    for split, prefix in (("validation", ""), ("test", "test/"), ("test~drop_0.2", "test~drop_0.2/")):
        record = {"step": 3, "evaluation": {"split": split, "macro": 0.5}}
        assert dict(scalars(record)) == {f"evaluation/{prefix}macro": 0.5}


def test_truncation_keeps_exactly_the_lines_up_to_the_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, LINES)
    before = path.read_text().splitlines()
    assert truncate(path, 20) == 1
    assert path.read_text().splitlines() == before[:3]


def test_truncation_drops_half_a_line_and_the_final_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [LINES[0], {"step": 10, "evaluation": {}, "final": True}], tail='{"step": 1, "lo')
    assert truncate(path, 10) == 2
    assert read(path) == [LINES[0]]


def test_truncation_of_nothing_is_nothing(tmp_path: Path) -> None:
    assert truncate(tmp_path / "metrics.jsonl", 5) == 0
