"""``tools/predict.py`` as users type it: tasks are listed, wrong requests are refused before a model is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.checkpoint.tools import main_of

SCRIPT = Path(__file__).parents[2] / "tools" / "predict.py"
TASKS = [
    {"name": "sst2", "labels": ["negative", "positive"], "num_outputs": 2, "pair": False},
    {"name": "stsb", "labels": [], "num_outputs": 1, "pair": True},
    {"name": "sum", "labels": [], "num_outputs": 0, "pair": False, "kind": "generation"},
    {"name": "poem", "labels": [], "num_outputs": 0, "pair": False, "kind": "language_modeling"},
]


@pytest.fixture
def export(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"tasks": TASKS}))
    return tmp_path


def predict(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_without_a_task_the_tasks_are_listed(export):
    done = predict(export)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "sst2: one text -> negative | positive",
        "stsb: two texts -> a number",
        "sum: one text -> a text",
        "poem: one text -> its continuation",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a text"], "no task is named"),
        (["--task", "mnli", "a text"], "the model does not know this task"),
        (["--task", "stsb", "one text"], "task stsb reads another number of texts"),
        (["--task", "sst2"], "task sst2 reads another number of texts"),
        (["--task", "sum"], "task sum reads another number of texts"),
    ],
)
def test_a_wrong_request_is_refused_with_the_remedy(export, arguments, message):
    done = predict(export, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}\n  got:      ")
    assert "\n  expected: " in done.stderr
    assert "\n  remedy:   " in done.stderr


@pytest.mark.parametrize("is_model", [False, True])
def test_a_folder_without_an_export_is_refused(tmp_path, is_model):
    if is_model:  # of transformers, which has no tasks
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    done = predict(tmp_path)
    assert done.returncode == 2
    assert "not an exported model" in done.stderr
    assert "tools/convert_to_hf.py" in done.stderr


def test_the_script_imports_nothing_of_distmoe():
    assert "import distmoe" not in SCRIPT.read_text()
    assert "from distmoe" not in SCRIPT.read_text()


def test_the_scorer_refuses_a_model_that_is_no_export(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert main_of("score_export")([str(tmp_path), "rows.jsonl"]) == 2
    assert "not an exported model" in capsys.readouterr().err
