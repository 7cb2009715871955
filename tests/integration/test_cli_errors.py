"""Whatever a user gets wrong is refused before the first step: four parts, exit code 2, no traceback, nothing lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distmoe.tokenization import build_word_tokenizer
from tests.integration.commands import ROOT, environment, overrides, run_alone, run_ranks

DRIVER = ROOT / "tests" / "integration" / "drivers" / "commands_in_one_process.py"
pytestmark = pytest.mark.timeout(300)


def task_folder(root: Path, name: str, *, label: object = 0, rows: int = 8, spec: bool = True) -> None:
    """A local task of ``rows`` examples per split, all with the same label."""
    folder = root / name
    folder.mkdir(parents=True)
    if spec:
        values = {"name": name, "type": "classification", "pair": False, "metric": "accuracy", "labels": ["no", "yes"]}
        (folder / "task.json").write_text(json.dumps(values))
    for split in ("train", "validation"):
        lines = [json.dumps({"text": f"word number {index}", "label": label}) for index in range(rows)]
        (folder / f"{split}.jsonl").write_text("".join(line + "\n" for line in lines))


def local(folder: Path, root: str) -> list[str]:
    tokenizer = f"data.tokenizer={folder / 'tokenizer'}"
    return overrides(folder, "tasks.source=local", f"data.root={folder / root}", tokenizer, name=root)


def cases(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Name -> (command line, what the message must say)."""
    task_folder(folder / "no_spec", "alpha", spec=False)
    task_folder(folder / "bad_label", "alpha", label=7)
    task_folder(folder / "empty", "alpha", rows=0)
    tiny = overrides(folder)
    return {
        "unknown option": ([*tiny, "--recipy", "demo"], r"command line cannot be read\n.*--recipy"),
        "unknown recipe": (["--recipe", "nothing"], r"no such recipe\n.*nothing\n.*demo"),
        "unknown key": (
            [*tiny, "model.hidden_sizes=3"],
            r"unknown key 'model.hidden_sizes'[\s\S]*did you mean model.hidden_size",
        ),
        "wrong type": ([*tiny, "model.num_layers=two"], r"'model.num_layers' has a value that does not fit\n.*'two'"),
        "no section": ([*tiny, "seed=3"], r"must name a section and a key\n.*seed=3"),
        "unknown gate": ([*tiny, "model.moe.gate.kind=magic"], r"model.moe.gate.kind[\s\S]*'magic'[\s\S]*task"),
        "experts not divisible": (
            [*tiny, "model.moe.num_experts=3", "structure.grouping=per_task"],
            r"3[\s\S]*4 task groups[\s\S]*a multiple of 4",
        ),
        "more task groups than experts": (
            [*tiny, "model.moe.num_experts=2", "structure.grouping=per_task"],
            r"4 task groups",
        ),
        "unknown task in a grouping": ([*tiny, "structure.grouping=[[nobody]]"], r"names unknown tasks\n.*nobody"),
        "ep_size does not divide the ranks": ([*tiny, "parallel.ep_size=2"], r"1 ranks, parallel.ep_size=2"),
        "capacity with a task-level gate": (
            [*tiny, "model.moe.gate.kind=task", "model.moe.capacity_factor=1.25"],
            r"capacity[\s\S]*gate",
        ),
        "ZeRO stage 7": ([*tiny, "--deepspeed_config", str(folder / "zero7.json")], r"got: +7"),
        "no such DeepSpeed file": (
            [*tiny, "--deepspeed_config", "nothing.json"],
            r"no such DeepSpeed configuration\n.*nothing.json",
        ),
        "batch size against micro-batches": (
            [*tiny, "data.micro_batch_size=5"],
            r"data.batch_size=16, data.micro_batch_size=5",
        ),
        "pretrained folder missing": ([*tiny, "model.pretrained=/nowhere"], r"model.pretrained[\s\S]*/nowhere"),
        "data.root missing": ([*tiny, "tasks.source=local", "data.root=/nowhere"], r"data.root[\s\S]*/nowhere"),
        "task folder without task.json": (local(folder, "no_spec"), r"task.json"),
        "label out of range": (local(folder, "bad_label"), r"label[\s\S]*got: +.*7"),
        "empty split": (local(folder, "empty"), r"empty|no example"),
        "nothing to resume": ([*tiny, "--resume", "must"], r"no complete checkpoint to resume from"),
        "no such checkpoint": ([*tiny, "--resume", "/nowhere"], r"does not exist\n.*/nowhere"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("errors")
    (folder / "zero7.json").write_text(json.dumps({"zero_optimization": {"stage": 7}}))
    build_word_tokenizer(["word", "number"]).save_pretrained(folder / "tokenizer")
    return folder


def answers(folder: Path, commands: list[list[str]]) -> list[tuple[int, str]]:
    done = subprocess.run(
        [sys.executable, str(DRIVER)],
        input=json.dumps(commands),
        cwd=folder,
        env=environment(folder),
        text=True,
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(answer) for answer in json.loads(done.stdout.splitlines()[-1])]


def test_every_user_error_is_refused_in_four_parts_before_anything_is_written(folder: Path) -> None:
    expected = cases(folder)
    wrong = []
    for (name, (_, text)), (code, said) in zip(
        expected.items(), answers(folder, [a for a, _ in expected.values()]), strict=True
    ):
        message = said[said.find("error: ") :]
        parts = all(f"\n  {part}" in message for part in ("got:", "expected:", "remedy:"))
        if code != 2 or not parts or "Traceback" in said or not re.search(text, message):
            wrong.append(f"--- {name}: exit code {code}, wanted {text!r}\n{said}")
    assert not wrong, "\n".join(wrong)
    assert not list(folder.glob("*/metrics.jsonl"))


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A run with a checkpoint, to be continued wrongly."""
    done = run_alone(folder, overrides(folder, "schedule.num_steps=2", "run.eval_every=null", name="trained"))
    assert done.code == 0, done.output
    return folder / "trained"


def test_wrong_continuations_are_refused_and_leave_the_run_as_it_was(folder: Path, trained: Path) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    checkpoint = trained / "checkpoints" / "step_2"
    again = overrides(folder, "schedule.num_steps=4", "run.eval_every=null", name="trained")
    other = overrides(folder, "tasks.suite.num_task_groups=3", "model.moe.num_experts=6", name="other")
    broken = folder / "step_2"
    subprocess.run(["cp", "-r", str(checkpoint), str(broken)], check=True)
    shard = max((broken / "shards").glob("*.distcp"), key=lambda path: path.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-100])
    commands = {
        "another configuration": (
            again,
            r"another configuration[\s\S]*num_steps=4[\s\S]*num_steps=2[\s\S]*--resume never",
        ),
        "another task set": ([*other, "--resume", str(checkpoint)], r"written for another task set"),
        "nothing left to train": (
            [*overrides(folder, "schedule.num_steps=2", name="third"), "--resume", str(checkpoint)],
            r"nothing is left to train[\s\S]*step 2, schedule\.num_steps=2",
        ),
        "truncated shard": (
            [*overrides(folder, name="third"), "--resume", str(broken)],
            r"is damaged\n.*bytes instead of",
        ),
    }
    for (name, (_, text)), (code, said) in zip(
        commands.items(), answers(folder, [a for a, _ in commands.values()]), strict=True
    ):
        assert code == 2, (name, said)
        assert re.search(text, said), (name, said)
        assert "Traceback" not in said
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_an_error_that_only_one_rank_meets_is_raised_by_all_and_said_once(folder: Path) -> None:
    both = run_ranks(folder, local(folder, "bad_label"))
    assert [one.code for one in both] == [2, 2]
    assert both[0].output.count("error: ") == 1
    assert "error: " not in both[1].output


def test_listing_recipes_and_printing_the_configuration_need_no_training(folder: Path) -> None:
    listed, printed = (
        run_alone(folder, arguments) for arguments in (["--list-recipes"], ["--print-config", "run.seed=7"])
    )
    assert (listed.code, printed.code) == (0, 0)
    assert "demo" in listed.output.split()
    assert "seed: 7" in printed.output
