"""A run that is stopped, killed in a step and killed in a save equals one that was left alone, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distmoe.checkpoint import folders
from distmoe.checkpoint.consolidate import read_weights
from tests.integration.commands import ROOT, Finished, metrics, overrides, run_ranks

INTERRUPT = ROOT / "tests" / "integration" / "drivers" / "interrupt.py"

pytestmark = pytest.mark.timeout(900)


def interrupted(folder: Path, moment: str, count: int, rank: int, name: str) -> list[Finished]:
    return run_ranks(folder, [moment, str(count), str(rank), name, *overrides(folder)], script=INTERRUPT)


def test_a_killed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert [one.code for one in run_ranks(whole, overrides(whole))] == [0, 0]
    # kill -9 of rank 1 in the middle of step 6: the other rank fails instead of waiting; steps 5 and 6 are lost.
    ended = interrupted(broken, "backward", 6, 1, "SIGKILL")
    assert ended[1].code == -9
    assert ended[0].code not in (0, 2)
    assert folders.latest(broken / "run" / "checkpoints") == broken / "run" / "checkpoints" / "step_4"
    ends_like(whole, broken)


@pytest.mark.slow
def test_a_run_stopped_and_killed_in_a_step_and_in_a_save_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert [one.code for one in run_ranks(whole, overrides(whole))] == [0, 0]

    # SIGTERM on rank 1 alone in step 3: both ranks end in order, with a checkpoint in the middle of a log window.
    ended = interrupted(broken, "backward", 3, 1, "SIGTERM")
    assert [one.code for one in ended] == [0, 0], ended[0].output
    assert "stopped by a signal on another rank after step 3" in ended[0].output
    checkpoints = broken / "run" / "checkpoints"
    assert [path.name for path in folders.steps(checkpoints)] == ["step_3"]

    ended = interrupted(broken, "backward", 3, 1, "SIGKILL")
    assert ended[1].code == -9
    assert ended[0].code not in (0, 2)
    assert folders.latest(checkpoints) == checkpoints / "step_4"

    # kill -9 of rank 0 in the save of step 6 (a new best) or 8, when all but the folder's name is written.
    ended = interrupted(broken, "rename", 1, 0, "SIGKILL")
    assert ended[0].code == -9
    assert list(checkpoints.glob("step_*.tmp"))
    assert folders.latest(checkpoints) == checkpoints / "step_4"
    ends_like(whole, broken)
    assert not list(checkpoints.glob("step_*.tmp"))


def ends_like(whole: Path, broken: Path) -> None:
    """Goes on to the end: equal log lines and weights."""
    ended = run_ranks(broken, ["--resume", "must", *overrides(broken)])
    assert [one.code for one in ended] == [0, 0], ended[0].output
    assert metrics(broken / "run") == metrics(whole / "run")
    expected, found = (read_weights(path / "run" / "checkpoints" / "step_12") for path in (whole, broken))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_a_run_that_saves_beside_training_equals_one_that_saves_at_once(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert [one.code for one in run_ranks(whole, overrides(whole))] == [0, 0]
    checkpoints = broken / "run" / "checkpoints"
    beside = "checkpoint.asynchronous=true"

    # kill -9 of rank 0 in the thread that saves step 8, after step 4 and the best of step 6.
    driver = ["rename", "3", "0", "SIGKILL", *overrides(broken, beside)]
    assert run_ranks(broken, driver, script=INTERRUPT)[0].code == -9
    assert folders.latest(checkpoints) == checkpoints / "step_6"

    # SIGTERM: the run ends when its last checkpoint is complete.
    driver = ["backward", "3", "1", "SIGTERM", "--resume", "must", *overrides(broken, beside)]
    ended = run_ranks(broken, driver, script=INTERRUPT)
    assert [one.code for one in ended] == [0, 0], ended[0].output
    assert folders.latest(checkpoints) == checkpoints / "step_9"

    ended = run_ranks(broken, ["--resume", "must", *overrides(broken, beside)])
    assert [one.code for one in ended] == [0, 0], ended[0].output
    assert "step_12 while training goes on; held for " in ended[0].output
    assert metrics(broken / "run") == metrics(whole / "run")
    first, second = (path / "run" / "checkpoints" / "step_12" for path in (whole, broken))
    expected, found = read_weights(first), read_weights(second)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
