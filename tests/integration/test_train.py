"""The command of the README on two ranks, with tiny settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.commands import Finished, launch, metrics, overrides, run_alone

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def finished(folder: Path) -> Finished:
    return launch(folder, overrides(folder, "run.report=true", "data.max_length=8", "parallel.ep_size=2"))


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
    assert scores[2][1] == "test"
    for line in lines:
        for row in line.get("evaluation", {}).get("tasks", {}).values():
            assert row["examples"] == 32


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
