"""The command of the README on two ranks, with tiny settings."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from tests.integration.commands import ROOT, Finished, launch, metrics, overrides, run_alone

pytestmark = pytest.mark.timeout(600)

SHIFTS = "data.shifts={noise: [0.4], drop: [0.5]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def finished(folder: Path) -> Finished:
    return launch(folder, overrides(folder, "run.report=true", "data.max_length=8", "parallel.ep_size=2", SHIFTS))


def test_the_launcher_trains_two_ranks_to_the_end(finished: Finished) -> None:
    assert finished.code == 0, finished.output
    assert "step 12/12" in finished.output
    assert finished.output.count("step 12/12") == 1  # one voice, not one per rank


def test_the_run_folder_holds_everything(finished: Finished, folder: Path) -> None:
    run = folder / "run"
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "summary.json", "result.json", "checkpoints", "report"} <= names
    assert (run / "report" / "index.html").is_file()
    assert (run / "checkpoints" / "step_12" / "manifest.json").is_file()
    result = json.loads((run / "result.json").read_text())
    assert result["ended"] == "Finished"
    assert result["step"] == 12


def test_metrics_hold_losses_routing_and_scores_of_every_task(finished: Finished, folder: Path) -> None:
    lines = metrics(folder / "run")
    train = [line for line in lines if "loss" in line]
    assert [line["step"] for line in train] == [2, 4, 6, 8, 10, 12]
    # Two steps of 16 examples each, over both ranks.
    assert [sum(task["examples"] for task in line["tasks"].values()) for line in train] == [32] * 6
    assert set(train[0]["routing"]) == {"layer_0", "layer_1"}
    assert sum(train[0]["routing"]["layer_0"]["load"]) > 0
    assert sum(line["routing"]["layer_0"]["bytes"] for line in train) > 0  # ep_size 2: some rows travel
    scores = [(line["step"], line["evaluation"]["split"]) for line in lines if "evaluation" in line]
    assert scores[:2] == [(6, "validation"), (12, "validation")]
    assert [split for _, split in scores[2:]] == ["test", "test~noise_0.4", "test~drop_0.5"]
    for line in lines:
        for row in line.get("evaluation", {}).get("tasks", {}).values():
            assert row["examples"] == 32


def test_two_ranks_score_under_shift_what_one_process_scores(
    finished: Finished, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((folder / "run" / "result.json").read_text())
    checkpoint = folder / "run" / "checkpoints" / f"step_{result['test_step']}"
    assert runpy.run_path(str(ROOT / "tools" / "evaluate.py"))["main"]([str(checkpoint), "--shifts"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-1] for row in rows[:3]] == ["test", "test~noise_0.4", "test~drop_0.5"]
    expected = [result["test"], result["shifts"]["noise_0.4"], result["shifts"]["drop_0.5"]]
    assert rows[-1][1:] == [f"{one['macro']:.4f}" for one in expected]
    losses = [one["tasks"]["planted0_a"]["loss"] for one in expected]
    assert len(set(losses)) == 3
    assert "test~drop_0.5 at step" in finished.output
    assert "Under shift" in (folder / "run" / "report" / "index.html").read_text()


def test_truncated_texts_are_counted_and_reported(finished: Finished, folder: Path) -> None:
    tasks = json.loads((folder / "run" / "summary.json").read_text())["tasks"]
    truncated = sum(task["truncated"] for task in tasks)
    assert truncated > 0
    assert f"{truncated:,} examples were longer than data.max_length=8" in finished.output


def test_the_same_command_again_has_nothing_to_do(finished: Finished, folder: Path) -> None:
    before = (folder / "run" / "metrics.jsonl").read_bytes()
    again = run_alone(folder, overrides(folder, "data.max_length=8"))
    assert again.code == 0
    assert "has ended already" in again.output
    assert (folder / "run" / "metrics.jsonl").read_bytes() == before
