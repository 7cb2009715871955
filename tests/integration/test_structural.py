"""Structural learning as a command: the tree grows together while training; a killed run ends like one left alone.

The suite is tiny and the tolerance large: this is about what happens, not about which tasks belong together.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
import yaml

from distmoe.checkpoint import folders
from distmoe.checkpoint.consolidate import read_moments, read_weights
from distmoe.checkpoint.manifest import read_manifest
from distmoe.checkpoint.store import read_trainer_state
from tests.integration.commands import ROOT, Finished, metrics, overrides, run_ranks

INTERRUPT = ROOT / "tests" / "integration" / "drivers" / "interrupt.py"
TOOL = ROOT / "tools" / "learn_groups.py"
NAMES = ("planted0_a", "planted0_low", "planted1_a", "planted1_low")
LEARN = (
    "structure.grouping=per_task", "model.moe.experts_per_task_group=1", "schedule.num_steps=24",
    "checkpoint.keep_last=20",
    "structure.learn={task_steps: 4, trial_steps: 3, similarity: cka, threshold: 0.6, probe_examples: 64, "
    "alignment_examples: 16, tolerance: 0.5}",
)  # fmt: skip

pytestmark = pytest.mark.timeout(1500)


def train(folder: Path, *more: str, num_ranks: int = 1) -> Finished:
    return run_ranks(folder, ["--resume", "auto", *overrides(folder, *LEARN, *more)], num_ranks=num_ranks)[0]


def killed(folder: Path, moment: str, count: int) -> None:
    (ended,) = run_ranks(
        folder, [moment, str(count), "0", "SIGKILL", *overrides(folder, *LEARN)], script=INTERRUPT, num_ranks=1
    )
    assert ended.code == -9, ended.output


def phases(folder: Path) -> list[dict]:
    lines = [line for line in metrics(folder / "run") if "structure" in line]
    timed = ("seconds", "steps_worth")
    return [{key: value for key, value in line["structure"].items() if key not in timed} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    ended = train(folder)
    assert ended.code == 0, ended.output
    return folder


def test_task_groups_are_merged_layer_by_layer(whole: Path) -> None:
    """Phases at steps 4 and 11, each with a trial of three steps that is kept."""
    lines = [line for line in metrics(whole / "run") if "structure" in line]
    assert [line["step"] for line in lines] == [7, 14]
    assert [[len(partition) for partition in line["structure"]["grouping"]] for line in lines] == [[1, 4], [1, 1]]
    expert = 2 * 32 * 64 + 64 + 32
    for line in lines:
        record = line["structure"]
        # Three experts fewer, and three columns fewer in the gate's table of four tasks.
        assert record["parameters"]["before"] - record["parameters"]["after"] == 3 * expert + 3 * 4
        assert [verdict["accepted"] for verdict in record["verdicts"]] == [True]
        assert record["proposals"][0]["threshold"] == 0.6
    assert lines[-1]["structure"]["next_phase_at"] is None
    final = read_manifest(whole / "run" / "checkpoints" / "step_24")
    assert [len(partition) for partition in final.grouping["layers"]] == [1, 1]


def test_the_alignment_term_is_in_the_loss_until_learning_has_ended(whole: Path) -> None:
    values = {line["step"]: line["auxiliary"]["alignment"] for line in metrics(whole / "run") if "loss" in line}
    assert values[2] > 0
    assert values[20] == 0


def test_every_step_is_logged_once_although_trials_run_twice(whole: Path) -> None:
    steps = [line["step"] for line in metrics(whole / "run") if "loss" in line]
    assert steps == sorted(set(steps))
    assert steps[:4] == [2, 4, 6, 7]


def test_what_a_run_has_used_of_its_data_counts_the_arms_of_trials(whole: Path) -> None:
    """16 examples per step: 24 steps, and two arms of 3 steps whose training was undone."""
    used = {line["step"]: line["samples"] for line in metrics(whole / "run") if "samples" in line}
    assert [used[step]["updates"] for step in (4, 7, 24)] == [16 * 4, 16 * 10, 16 * 30]
    assert used[24]["forward_equivalents"] == 3 * 16 * 30


def test_the_best_score_is_one_whose_weights_can_be_loaded(whole: Path) -> None:
    """Evaluations are due at steps 6 and 12, in trials, where nothing is saved."""
    checkpoints = whole / "run" / "checkpoints"
    best = {step: read_trainer_state(checkpoints / f"step_{step}")["progress"]["best"] for step in (4, 7, 11, 14)}
    for border, behind in ((4, 7), (11, 14)):
        assert best[border]["step"] == border
        assert best[border]["score"] == read_manifest(checkpoints / f"step_{border}").score
        assert best[behind]["score"] is None


@pytest.mark.structural
def test_a_run_killed_at_any_stage_equals_an_uninterrupted_one(whole: Path, tmp_path: Path) -> None:
    """Backward 6: in the arm without merges (steps 1-4 come first); then 5, from the checkpoint of step 4: in the arm
    with merges. Then in the save that ends the first phase, when its folder lacks only the name.
    """
    checkpoints = tmp_path / "run" / "checkpoints"
    for moment, count in (("backward", 6), ("backward", 5), ("rename", 1)):
        killed(tmp_path, moment, count)
        assert folders.latest(checkpoints) == checkpoints / "step_4"
        assert read_trainer_state(checkpoints / "step_4")["progress"]["structure"]["pending"] is not None
    ended = train(tmp_path)
    assert ended.code == 0, ended.output
    assert phases(tmp_path) == phases(whole)
    expected, found = (folder / "run" / "checkpoints" / "step_24" for folder in (whole, tmp_path))
    for read in (read_weights, lambda path: read_moments(path, "exp_avg_sq")):
        first, second = read(expected), read(found)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.structural
def test_a_restart_gives_the_run_that_was_told_the_grouping_even_if_it_is_killed_in_a_trial(tmp_path: Path) -> None:
    """All tasks are joined at step 8, so from step 1 on it is the run with one task group: bit by bit, with dropout."""
    options = LEARN[-1].replace(
        "task_steps: 4, trial_steps: 3", "task_steps: 8, trial_steps: 8, restart: true, alignment: 0"
    )
    learned, told = tmp_path / "learned", tmp_path / "told"
    arguments = overrides(learned, *LEARN, options)
    (ended,) = run_ranks(learned, ["backward", "11", "0", "SIGKILL", *arguments], script=INTERRUPT, num_ranks=1)
    assert ended.code == -9, ended.output
    assert folders.latest(learned / "run" / "checkpoints").name == "step_8"
    ended = train(learned, options)
    assert ended.code == 0, ended.output
    (phase,) = phases(learned)
    assert phase["grouping"] == [[[0, 1, 2, 3]]] * 2
    assert phase["next_phase_at"] is None
    # Eight steps before the phase, eight of the arm that was kept, and the rest; those before the kill are lost.
    assert metrics(learned / "run")[-2]["step"] == 24
    [*_, used] = [line["samples"] for line in metrics(learned / "run") if "samples" in line]
    assert used["updates"] == 16 * (8 + 8 + 16)
    steps = [line["step"] for line in metrics(learned / "run") if "loss" in line]
    assert steps == sorted(set(steps))
    ended = train(told, "structure.learn=null", "structure.grouping=one")
    assert ended.code == 0, ended.output
    first, second = (read_weights(folder / "run" / "checkpoints" / "step_24") for folder in (learned, told))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.structural
def test_another_task_set_is_refused_before_the_first_step(whole: Path, tmp_path: Path) -> None:
    checkpoint = whole / "run" / "checkpoints" / "step_24"
    names = f"tasks.names=[{', '.join(NAMES[:3])}]"
    (ended,) = run_ranks(tmp_path, ["--resume", str(checkpoint), *overrides(tmp_path, *LEARN, names)], num_ranks=1)
    assert ended.code == 2, ended.output
    assert "was written for another task set" in ended.output
    assert NAMES[3] in ended.output


@pytest.mark.slow
def test_means_by_least_squares_are_those_of_one_process_on_two_ranks(tmp_path: Path) -> None:
    options = LEARN[-1].replace("tolerance", "mean: least_squares, tolerance")
    folders_of = [tmp_path / f"{num_ranks}" for num_ranks in (1, 2)]
    for num_ranks, folder in zip((1, 2), folders_of, strict=True):
        ended = train(folder, "model.dropout=0", "model.attention_dropout=0", options, num_ranks=num_ranks)
        assert ended.code == 0, ended.output
    first, second = ([line for line in metrics(path / "run") if "loss" in line] for path in folders_of)
    for alone, shared in zip(first, second, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-4)


@pytest.mark.slow
def test_task_groups_pool_their_experts_and_merge_them_beyond_a_limit(tmp_path: Path) -> None:
    """One expert per task, at most three per pool: four joined tasks keep three."""
    pooled = ("model.moe.experts_per_task_group=null", "model.moe.experts_per_task=1", "model.moe.largest_pool=3")
    folders_of = [tmp_path / f"{num_ranks}" for num_ranks in (1, 2)]
    for num_ranks, folder in zip((1, 2), folders_of, strict=True):
        ended = train(folder, *pooled, "model.dropout=0", "model.attention_dropout=0", num_ranks=num_ranks)
        assert ended.code == 0, ended.output
    one, two = map(phases, folders_of)
    assert [record["pool_sizes"] for record in one] == [[[3], [1, 1, 1, 1]], [[3], [3]]]
    assert [record["grouping"] for record in two] == [record["grouping"] for record in one]
    first, second = ([line for line in metrics(path / "run") if "loss" in line] for path in folders_of)
    for alone, shared in zip(first, second, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5)


WHOLE = ("model.moe.unit=block", "model.dropout=0", "model.attention_dropout=0")
PAPER = (
    "structure.learn={task_steps: [4, 3], trial_steps: 0, similarity: cka, threshold: 0.6, probe_examples: 64, "
    "alignment_examples: 16, amalgamation: {steps: [3, 2], batch_size: 16}}"
)


@pytest.mark.slow
@pytest.mark.parametrize("paper", [False, True])
def test_whole_layers_are_joined_alike_on_one_rank_and_on_two(tmp_path: Path, paper: bool) -> None:
    """By means with a trial, and by amalgamation: losses before, through and after both structural phases."""
    folders_of = [tmp_path / f"{num_ranks}" for num_ranks in (1, 2)]
    for num_ranks, folder in zip((1, 2), folders_of, strict=True):
        ended = train(folder, *WHOLE, *([PAPER] if paper else []), num_ranks=num_ranks)
        assert ended.code == 0, ended.output
    one, two = map(phases, folders_of)
    assert len(one) == 2
    assert [record["grouping"] for record in two] == [record["grouping"] for record in one]
    assert [[created["steps"] for created in record["amalgamation"]] for record in one] == (
        [[3], [2]] if paper else [[], []]
    )
    first, second = ([line for line in metrics(path / "run") if "loss" in line] for path in folders_of)
    for alone, shared in zip(first, second, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-4 if paper else 1e-5)


@pytest.mark.slow
def test_a_run_killed_in_a_phase_of_the_paper_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """The kill comes in the save that ends the first phase; the layer is made again, the same."""
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert train(whole, *WHOLE, PAPER).code == 0
    (ended,) = run_ranks(
        again, ["rename", "2", "0", "SIGKILL", *overrides(again, *LEARN, *WHOLE, PAPER)], script=INTERRUPT, num_ranks=1
    )
    assert ended.code == -9, ended.output
    assert train(again, *WHOLE, PAPER).code == 0
    first, second = (read_weights(folder / "run" / "checkpoints" / "step_24") for folder in (whole, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.structural
def test_merges_that_are_not_kept_are_banned_and_training_goes_back(tmp_path: Path) -> None:
    """With no tolerance at all, of a whole frontier and its task groups one loses, by however little."""
    ended = train(
        tmp_path,
        "structure.learn.similarity=transfer",
        "structure.learn.tolerance=0",
        "structure.learn.confidence=0",
    )
    assert ended.code == 0, ended.output
    (first, *_) = [line for line in metrics(tmp_path / "run") if "structure" in line]
    record, tried = first["structure"], first["structure"]["verdicts"]
    assert [len(merge["merge"]["members"]) for merge in tried] == [4, 2, 2]
    tasks_of = {place: {t for own in one["merge"]["members"] for t in own} for place, one in enumerate(tried)}
    kept = [tasks_of[place] for place, one in enumerate(tried) if one["accepted"]]
    lost = [sorted(tasks_of[place]) for place, one in enumerate(tried) if not one["accepted"]]
    assert lost
    assert [ban["tasks"] for ban in record["bans"]] == sorted(
        tasks for tasks in lost if not any(set(tasks) <= own for own in kept)
    )
    groups_kept = all(one["accepted"] for one in tried[1:])
    assert first["step"] == (7 if groups_kept else 4)  # behind the last arm, or back at the checkpoint
    assert record["steps_worth"] > 0


@pytest.mark.structural
def test_two_ranks_learn_the_same_tree_with_the_same_losses_as_one(tmp_path: Path) -> None:
    """Without dropout, whose noise differs by rank: before, through and after both structural phases."""
    calm = ("model.dropout=0", "model.attention_dropout=0")
    folders_of = [tmp_path / f"{num_ranks}" for num_ranks in (1, 2)]
    for num_ranks, folder in zip((1, 2), folders_of, strict=True):
        ended = train(folder, *calm, num_ranks=num_ranks)
        assert ended.code == 0, ended.output
    one, two = map(phases, folders_of)
    assert len(one) == 2
    assert [record["grouping"] for record in two] == [record["grouping"] for record in one]
    first, second = ([line for line in metrics(path / "run") if "loss" in line] for path in folders_of)
    for alone, shared in zip(first, second, strict=True):
        assert alone["step"] == shared["step"]
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert shared["auxiliary"]["alignment"] == pytest.approx(alone["auxiliary"]["alignment"], rel=1e-4, abs=1e-5)


def test_learn_groups_proposes_a_recipe_section_from_a_checkpoint(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind the first phase: all tasks share the first routed layer, each has a part of its own in the second."""
    main = runpy.run_path(str(TOOL))["main"]
    checkpoint, out = str(whole / "run" / "checkpoints" / "step_7"), tmp_path / "groups"
    assert main([checkpoint, "--examples", "64", "--out", str(out)]) == 0
    grouping = yaml.safe_load((out / "structure.yaml").read_text())["structure"]["grouping"]
    assert [sorted(name for own in layer for name in own) for layer in grouping] == [sorted(NAMES)] * 2
    assert {"dendrogram.png", "tree.png", "similarities.json"} <= {path.name for path in out.iterdir()}
    matrix = json.loads((out / "similarities.json").read_text())["layer_1"]
    assert [matrix[task][task] for task in range(4)] == [1.0] * 4

    # Two tasks of a task group, without its first.
    assert main([checkpoint, "--examples", "64", "--tasks", NAMES[1], NAMES[2], "--out", str(out)]) == 0
    grouping = yaml.safe_load((out / "structure.yaml").read_text())["structure"]["grouping"]
    assert [sorted(name for own in layer for name in own) for layer in grouping] == [sorted(NAMES[1:3])] * 2
    capsys.readouterr()
    assert main([checkpoint, "--tasks", NAMES[0], "nothing"]) == 2
    assert "these tasks cannot be compared" in capsys.readouterr().err
