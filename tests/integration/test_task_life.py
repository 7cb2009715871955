"""A task's life, as a user types it: added to a trained model, trained from few examples, another one removed.

Prints the tables of ``tools/evaluate.py --compare`` (``pytest -m slow -s tests/integration/test_task_life.py``).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from distmoe.checkpoint.consolidate import read_weights
from distmoe.checkpoint.manifest import read_manifest
from tests.integration.commands import ROOT, launch, overrides, run_alone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

NEW = {
    "name": "shouting", "type": "classification", "labels": ["few", "many"], "metric": "accuracy",
    "description": "Does the text have a word twice?",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of four tasks, and a folder with a fifth."""
    root = tmp_path_factory.mktemp("life")
    ended = launch(root, overrides(root, "schedule.num_steps=24", name="old"))
    assert ended.code == 0, ended.output
    task = root / "shouting"
    task.mkdir()
    (task / "task.json").write_text(json.dumps(NEW))
    for split, count in (("train", 32), ("validation", 32), ("test", 32)):
        rows = [{"text": "ba da " + "ka " * (1 + 7 * (row % 2)), "label": row % 2} for row in range(count)]
        (task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def edit(root: Path, source: str, out: str, *arguments: str) -> str:
    last = sorted((root / source / "checkpoints").glob("step_*"), key=lambda path: int(path.name[5:]))[-1]
    done = run_alone(root, [str(last), str(root / out), *arguments], script=ROOT / "tools" / "edit_tasks.py")
    assert done.code == 0, done.output
    return done.output


def train(root: Path, name: str) -> None:
    ended = launch(root, ["--recipe", str(root / name / "config.yaml")])
    assert ended.code == 0, ended.output
    assert re.search(r"resumed from .*step_0 at step 0", ended.output), ended.output


def compare(root: Path, *checkpoints: str) -> dict[str, list[str]]:
    """Task -> its scores in the table."""
    paths = [str(root / one) for one in checkpoints]
    arguments = [paths[0], *(word for path in paths[1:] for word in ("--compare", path)), "--split", "test"]
    done = run_alone(root, arguments, script=ROOT / "tools" / "evaluate.py")
    assert done.code == 0, done.output
    print(f"\n{done.output}", file=sys.stderr)
    rows = [line.split() for line in done.output[done.output.index("task ") :].splitlines()[1:-1]]
    return {row[0]: row[2:] for row in rows}


@pytest.mark.parametrize("recipe", ["add_task", "add_task_frozen"])
def test_a_task_is_added_trained_and_another_one_removed(root: Path, recipe: str) -> None:
    more, less = f"more_{recipe}", f"less_{recipe}"
    said = edit(root, "old", more, "--add", "shouting", "--recipe", recipe, "schedule.num_steps=12", "run.eval_every=6")
    assert "shouting joins the task groups of" in said
    train(root, more)
    edit(root, more, less, "--remove", "planted1_low", "model.freeze=none", "schedule.num_steps=4")
    train(root, less)
    steps = [f"old/checkpoints/{last(root / 'old')}", f"{more}/checkpoints/{last(root / more)}"]
    found = compare(root, *steps, f"{less}/checkpoints/step_4")
    old_tasks = {"planted0_a", "planted0_low", "planted1_a"}
    assert found.keys() == {*old_tasks, "planted1_low", "shouting"}
    assert found["shouting"][0] == "-"
    assert found["planted1_low"][2] == "-"
    if recipe == "add_task_frozen":
        assert all(found[task][0] == found[task][1] for task in old_tasks)
        _assert_only_the_new_task_moved(root / steps[0], root / steps[1])


def last(run: Path) -> str:
    return max(run.glob("checkpoints/step_*"), key=lambda path: int(path.name[5:])).name


def _assert_only_the_new_task_moved(old: Path, new: Path) -> None:
    """Two ranks, ZeRO-1, twelve steps: every weight but the new task's own is the old one, bit for bit."""
    before, after = read_weights(old), read_weights(new)
    kinds = {name: record.kind for name, record in read_manifest(new).tensors.items()}
    assert before.keys() == after.keys()
    for name, value in before.items():
        rows = len(value) if kinds[name] == "trainable" else None
        assert torch.equal(after[name][:rows], value), name
    assert not torch.equal(after["heads.weight"][4], torch.zeros_like(after["heads.weight"][4]))
