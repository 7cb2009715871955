"""Recipe ``gen_tasks`` as a user lives with it: trained, killed, resumed, exported, asked with transformers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from distmoe.checkpoint.consolidate import read_weights
from tests.integration.commands import ROOT, Finished, launch, metrics, run_alone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TASKS = {
    "reverse": "exact_match",
    "translate": "bleu",
    "shorten": "rouge_l",
    "add": "exact_match_final_number",
}
STEPS, HALF = 60, 30


def settings(folder: Path) -> list[str]:
    return [
        "--recipe", "gen_tasks", f"run.output_dir={folder}", f"data.cache_dir={folder / 'cache'}", "model.num_layers=2",
        "model.hidden_size=64", "tasks.text_suite.train_examples=64", "tasks.text_suite.eval_examples=5",
        "data.batch_size=32", f"schedule.num_steps={STEPS}", "run.log_every=10", f"run.eval_every={HALF}",
        "run.report=false", "run.tensorboard=false",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generation")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Finished:
    ended = launch(folder, settings(folder))
    assert ended.code == 0, ended.output
    return ended


def last_step(folder: Path) -> Path:
    return folder / "gen_tasks" / "checkpoints" / f"step_{STEPS}"


def tool(folder: Path, name: str, *arguments: object) -> str:
    done = run_alone(folder, [str(one) for one in arguments], script=ROOT / "tools" / f"{name}.py")
    assert done.code == 0, done.output
    return done.output


def test_every_task_is_scored_on_generated_answers_by_its_own_metric(trained: Finished, folder: Path) -> None:
    evaluations = [line["evaluation"] for line in metrics(folder / "gen_tasks") if "evaluation" in line]
    assert [one["split"] for one in evaluations] == ["validation", "validation", "test"]
    for evaluation in evaluations:
        assert {name: row["metric"] for name, row in evaluation["tasks"].items()} == TASKS
        for row in evaluation["tasks"].values():
            assert 0 <= row["score"] <= 1
            assert row["examples"] == 5
            assert row["perplexity"] > 1
    first, second = (sum(row["loss"] for row in one["tasks"].values()) for one in evaluations[:2])
    assert second < first


def test_one_process_scores_the_checkpoint_as_the_two_ranks_did(trained: Finished, folder: Path) -> None:
    by_ranks = [line["evaluation"] for line in metrics(folder / "gen_tasks") if "evaluation" in line][-1]
    output = tool(folder, "evaluate", last_step(folder), "--split", "test")
    alone = json.loads(output[output.index("{\n") :])
    for name, row in alone["tasks"].items():
        assert row["score"] == by_ranks["tasks"][name]["score"], name
        assert row["loss"] == pytest.approx(by_ranks["tasks"][name]["loss"], rel=1e-5)


def test_the_export_answers_what_the_checkpoint_answers(trained: Finished, folder: Path) -> None:
    checkpoint = last_step(folder)
    tool(folder, "convert_to_hf", checkpoint, folder / "whole")
    tool(folder, "convert_to_hf", checkpoint, folder / "add", "--task", "add")
    assert json.loads((folder / "add" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    for text in ("3 plus 4", "20 plus 1"):
        wanted = tool(folder, "generate", checkpoint, "--task", "add", text).partition("---\n")[2].strip()
        assert wanted
        for export in ("whole", "add"):
            answers = tool(folder, "predict", folder / export, "--task", "add", text, "--json")
            assert json.loads(answers.splitlines()[-1])["text"] == wanted, export
    assert tool(folder, "predict", folder / "whole").splitlines()[-1] == "add: one text -> a text"


def test_a_resumed_run_scores_and_weighs_what_the_uninterrupted_one_does(trained: Finished, folder: Path) -> None:
    again = folder / "again"
    shutil.copytree(folder / "gen_tasks", again / "gen_tasks")
    shutil.rmtree(last_step(again))
    (again / "gen_tasks" / "result.json").unlink()
    ended = launch(folder, [*settings(folder), f"run.output_dir={again}"])
    assert ended.code == 0, ended.output
    assert f"at step {HALF}" in ended.output
    assert metrics(again / "gen_tasks") == metrics(folder / "gen_tasks")
    before, after = read_weights(last_step(folder)), read_weights(last_step(again))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
