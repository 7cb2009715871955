"""What a study reads of a run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from distmoe.recipes import resolve
from distmoe.studies import launch
from distmoe.studies.launch import read_outcome


def scores(*values: float) -> dict[str, Any]:
    rows = {f"t{index}": {"metric": "accuracy", "score": value} for index, value in enumerate(values)}
    return {"macro": sum(values) / len(values), "tasks": rows}


def a_run(folder: Path, *lines: dict[str, Any], **result: Any) -> Path:
    """Two tasks, 1000 parameters at the start, of which 100 are frozen."""
    ended = {"step": 12, "seconds": 3.0, "best": {"step": 6}, "test": scores(0.5, 0.75), **result}
    summary = {
        "tasks": [{"family": "a"}, {"family": "a"}],
        "grouping": {"layers": [[[0], [1]]]},
        "parameters": {"total": 1000},
        "shares": {"frozen_backbone": 60, "frozen_added": 40},
    }
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(ended))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_parameters_are_those_of_the_model_that_was_tested(tmp_path: Path) -> None:
    """Two phases, of which the last was killed while it settled and has its line twice."""
    told = read_outcome(a_run(tmp_path / "told"))
    assert (told["parameters"], told["trained"], told["task_groups"]) == (1000, 900, [2])
    last = {"step": 8, "structure": {"grouping": [[[0, 1]]], "parameters": {"before": 900, "after": 800}}}
    first = {"step": 4, "structure": {"grouping": [[[0], [1]]], "parameters": {"before": 1000, "after": 900}}}
    learned = read_outcome(a_run(tmp_path / "learned", first, last, last))
    assert (learned["parameters"], learned["trained"], learned["task_groups"]) == (800, 700, [1])
    assert learned["agreement"] == 1.0


def test_scores_under_shift_are_read_where_there_are_some(tmp_path: Path) -> None:
    assert read_outcome(a_run(tmp_path / "without"))["shifts"] == {}
    found = read_outcome(a_run(tmp_path / "with", shifts={"drop_0.2": scores(0.25, 0.5)}))
    assert found["shifts"] == {"drop_0.2": {"macro": 0.375, "tasks": {"t0": 0.25, "t1": 0.5}}}
    assert found["tasks"] == {"t0": 0.5, "t1": 0.75}


@pytest.mark.parametrize("in_process", [False, True])
def test_a_run_that_has_ended_is_read_and_not_trained_again(tmp_path: Path, monkeypatch, in_process: bool) -> None:
    """A study was killed before it wrote the run's line; the run's checkpoints are gone, its folder was moved."""
    overrides = ("run.seed=3", "schedule.num_steps=12")
    folder = tmp_path / "runs" / "D-3"
    folder.parent.mkdir()
    a_run(folder)
    places = ["run.output_dir=elsewhere", "data.cache_dir=elsewhere", "run.name=D-3"]
    config = resolve("dense", [*launch.QUIET, *overrides, *places])
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    begun: list[object] = []

    class BegunError(Exception):
        pass

    def begin(*arguments: Any, **_: Any) -> None:
        begun.append(arguments)
        raise BegunError

    monkeypatch.setattr("subprocess.Popen", begin)
    monkeypatch.setattr("distmoe.training.run.train", begin)

    def train(*changed: str) -> dict[str, Any]:
        if in_process:
            return launch.train_here("dense", [*overrides, *changed], folder=folder)
        return launch.train("dense", [*overrides, *changed], folder=folder, num_ranks=1)

    assert train()["tasks"] == {"t0": 0.5, "t1": 0.75}
    assert not begun
    with pytest.raises(BegunError):
        train("run.eval_every=4")  # might have chosen another checkpoint
    (folder / "result.json").unlink()
    with pytest.raises(BegunError):
        train()
