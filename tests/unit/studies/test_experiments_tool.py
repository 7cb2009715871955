"""``tools/experiments.py`` with a stand-in for training; the real one: tests/integration/test_experiments.py."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from distmoe.errors import TrainingError
from tests.unit.studies.records import record

TOOL = Path(__file__).parents[3] / "tools" / "experiments.py"
STUDY = """
question: Does it help?
recipe: dense
arms:
  K: {title: longer, compute_of: D}
  C: {title: control}
  D: {title: slower, overrides: [optimizer.lr=1e-4]}
comparisons:
  - {claim: slower is better, arm: D, against: C}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Runs the command; returns its exit code and the names of the runs that it has trained."""
    (tmp_path / "mine.yaml").write_text(STUDY)
    trained: list[str] = []
    steps: dict[str, int] = {}
    tool = runpy.run_path(str(TOOL))

    def train(recipe, overrides, *, folder, num_ranks):
        if folder.name == steps.get("fails"):
            raise TrainingError("it failed", got=1, expected=0, remedy="none")
        trained.append(folder.name)
        (folder / "checkpoints").mkdir(parents=True)
        given = [text for text in overrides if text.startswith("schedule.num_steps=")]
        steps[folder.name] = int(given[-1].partition("=")[2]) if given else 0
        outcome = record("any", 0, 0.5 + 0.1 * ("D" in folder.name), forward_equivalents=192 * 5)
        return {key: outcome[key] for key in outcome if key not in ("arm", "seed", "recipe", "runs")}

    monkeypatch.setitem(tool["train_all"].__globals__, "train", train)

    def run(*arguments):
        trained.clear()
        return tool["main"]([str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out"), *arguments]), list(trained)

    run.steps, run.out = steps, tmp_path / "out"
    return run


def test_an_interrupted_study_trains_what_is_missing(study, capsys):
    study.steps["fails"] = "C-1"
    assert study("--seeds", "2") == (2, ["C-0", "D-0", "K-0"])
    assert "it failed" in capsys.readouterr().err
    study.steps["fails"] = ""
    assert study("--seeds", "2") == (0, ["C-1", "D-1", "K-1"])
    assert study("--seeds", "2") == (0, [])
    lines = (study.out / "runs.jsonl").read_text().splitlines()
    assert [(json.loads(line)["arm"], json.loads(line)["seed"]) for line in lines] == [
        ("C", 0), ("D", 0), ("K", 0), ("C", 1), ("D", 1), ("K", 1)
    ]  # fmt: skip
    assert "| slower is better | D - C | > 0 | +0.1000" in (study.out / "table.md").read_text()
    assert (study.out / "study.png").is_file()


def test_arms_with_other_settings_do_not_get_into_the_same_study(study, capsys):
    assert study("--seeds", "1", "--arms", "C", "schedule.num_steps=10") == (0, ["C-0"])
    assert study("--seeds", "1", "--arms", "D", "--recipe", "demo", "schedule.num_steps=20") == (2, [])
    assert "choose another --out" in capsys.readouterr().err
    assert study("--table") == (0, [])
    assert study("--seeds", "1", "--arms", "D", "schedule.num_steps=10") == (0, ["D-0"])


def test_printed_commands_are_quoted_as_a_shell_reads_them(study, capsys):
    assert study("--seeds", "1", "--arms", "D", "--dry-run", "tasks.names=[a, b]") == (0, [])
    assert "train.py --recipe dense 'tasks.names=[a, b]' optimizer.lr=1e-4 run.seed=0" in capsys.readouterr().out


def test_equal_compute_is_taken_from_the_run_of_the_same_seed(study):
    study("--seeds", "1")
    assert study.steps["K-0"] == 5  # 192 forwards pay for one step of 64 examples


def test_checkpoints_go_unless_they_are_asked_for(study):
    study("--seeds", "1", "--arms", "C")
    study("--seeds", "1", "--arms", "D", "--keep")
    assert [(study.out / "runs" / name / "checkpoints").exists() for name in ("C-0", "D-0")] == [False, True]


def test_a_wrong_arm_is_refused_before_any_run(study, capsys):
    assert study("--seeds", "1", "optimizer.lrr=1") == (2, [])
    assert "did you mean optimizer.lr?" in capsys.readouterr().err
    assert study("--seeds", "0") == (2, [])
    assert study("--table") == (2, [])
    assert study("--in-process", "--ranks", "2") == (2, [])


def test_a_dry_run_prints_commands(study, capsys):
    assert study("--seeds", "1", "--arms", "D", "--dry-run") == (0, [])
    assert "train.py --recipe dense optimizer.lr=1e-4 run.seed=0" in capsys.readouterr().out


def test_the_arms_of_a_study_are_listed_with_titles_and_recipes(study, capsys):
    assert study("--list-arms") == (0, [])
    assert capsys.readouterr().out == "K  longer (dense)\nC  control (dense)\nD  slower (dense)\n"
    assert not study.out.exists()
