"""Verdicts by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distmoe.structure.frontier import Frontier
from distmoe.structure.plan import Merge, MergePlan
from distmoe.structure.propose import propose
from distmoe.structure.similarity import Similarity
from distmoe.tasks import TaskGrouping
from distmoe.training.structural.state import Pending
from distmoe.training.structural.trial import Outcome, Rule, Verdict, judge
from tests.unit.training.samples import TASKS

FRONTIER = Frontier(0, ((0,), (1,), (2,)))
# Tasks 0 and 2 are alike, 1 is not.
PROPOSAL = propose(
    FRONTIER, Similarity.from_values([[0, -0.1, 0.2], [-0.1, 0, -0.1], [0.2, -0.1, 0]]), threshold=None
)  # fmt: skip
PAIR, WHOLE = Merge(0, ((0,), (2,))), Merge(0, FRONTIER.members)
PLANS = tuple(MergePlan(0, TaskGrouping.one_per_task(3, 1), (merge,), (1, 1, 1)) for merge in (WHOLE, PAIR))


def losses(colour: float, shape: float, spread: float = 0.0, size: float = 1.0) -> dict[str, np.ndarray]:
    """Four examples per task, half of them ``spread`` above and half below."""
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    return {"colour": colour + spread * signs, "size": np.full(4, size), "shape": shape + spread * signs}


ONES = losses(1, 1)


def verdict(control: dict, merged: dict, *, before: dict = ONES, confidence: float = 0.0) -> Verdict:
    """Of the pair, which is tried alone."""
    alone = Pending(PLANS[1:], (replace(PROPOSAL, whole=None),))
    (found,) = judge(alone, TASKS, Outcome(before, control, (merged,)), Rule(0.02, confidence))
    return found


def test_the_mean_over_the_tasks_of_the_merge_decides() -> None:
    """colour is 10 % better, shape 12 % worse: 1 % worse on average; size is not in the merge."""
    found = verdict(ONES, losses(0.9, 1.12, size=9.0))
    assert (round(found.against_control.ratio, 6), found.against_control.noise, found.accepted) == (1.01, 0.0, True)


def test_a_merge_that_costs_more_than_the_tolerance_is_undone() -> None:
    found = verdict(losses(0.5, 0.5), losses(0.9, 0.9))
    assert (round(found.against_control.ratio, 6), round(found.against_before, 6), found.accepted) == (1.8, 0.9, False)


def test_noise_is_that_of_the_paired_differences() -> None:
    """Changes of +-0.3 around 0.1 on 4 examples: variance 0.09 * 4 / 3, so each task's error is 0.3 / sqrt(3)."""
    found = verdict(ONES, losses(1.1, 1.1, 0.3))
    assert found.against_control.noise == pytest.approx(0.3 / 3**0.5 / 2**0.5)
    common = verdict(losses(1, 1, 0.5), losses(1.1, 1.1, 0.5))
    assert common.against_control.noise == pytest.approx(0.0)  # what both arms share is no noise


def test_a_loss_inside_the_noise_is_forgiven_and_one_beyond_it_is_not() -> None:
    merged = losses(1.1, 1.1, 0.3)
    assert not verdict(ONES, merged).accepted
    assert verdict(ONES, merged, confidence=1.0).accepted  # 0.1 <= 0.02 + 0.122
    assert not verdict(ONES, merged, confidence=0.6).accepted  # 0.1 > 0.02 + 0.073


def test_a_task_that_over_fits_in_both_arms_does_not_condemn_a_merge() -> None:
    found = verdict(losses(1.5, 1.5), losses(1.4, 1.4))
    assert (round(found.against_before, 6), found.accepted) == (1.4, True)


def test_a_merge_without_validation_examples_is_kept() -> None:
    found = verdict({}, {}, before={})
    assert (found.against_control.ratio, found.accepted) == (1.0, True)


def both(whole: dict, pair: dict, *, tolerance: float = 0.0) -> list[tuple[tuple, bool]]:
    found = judge(Pending(PLANS, (PROPOSAL,)), TASKS, Outcome(ONES, ONES, (whole, pair)), Rule(tolerance, 0.0))
    return [(one.merge.result, one.accepted) for one in found]


def test_sharing_with_all_must_not_be_worse_than_sharing_with_the_right_ones() -> None:
    """The whole beats training apart by 5 %, but its task groups do so by 10 %."""
    assert both(losses(0.95, 0.95, size=0.95), losses(0.85, 0.85)) == [((0, 1, 2), False), ((0, 2), True)]


def test_a_whole_that_is_no_worse_wins_over_its_task_groups() -> None:
    assert both(losses(0.9, 0.9, size=0.9), losses(0.9, 0.9)) == [((0, 1, 2), True), ((0, 2), False)]


def test_the_tolerance_does_not_let_a_whole_win_that_is_worse_than_its_task_groups() -> None:
    """Both may cost 10 % against training apart; the whole costs 1 % more than its task groups."""
    found = both(losses(1.01, 1.01, size=1.01), ONES, tolerance=0.1)
    assert found == [((0, 1, 2), False), ((0, 2), True)]


def test_a_whole_that_is_worse_than_training_apart_loses_whatever_its_task_groups_do() -> None:
    assert both(losses(1.1, 1.1, size=1.1), losses(1.2, 1.2)) == [((0, 1, 2), False), ((0, 2), False)]
