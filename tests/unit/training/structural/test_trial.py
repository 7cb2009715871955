"""Verdicts by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distmoe.structure.frontier import Frontier
from distmoe.structure.plan import Merge, MergePlan
from distmoe.structure.propose import propose
from distmoe.structure.similarity import Similarity
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec
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


def errors(colour: float, shape: float, spread: float = 0.0, size: float = 1.0) -> dict[str, np.ndarray]:
    """Four examples per task, half of them ``spread`` above and half below."""
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    return {"colour": colour + spread * signs, "size": np.full(4, size), "shape": shape + spread * signs}


ONES = errors(1, 1)


def verdict(control: dict, merged: dict, *, before: dict = ONES, confidence: float = 0.0) -> Verdict:
    """Of the pair, which is tried alone."""
    alone = Pending(PLANS[1:], (replace(PROPOSAL, whole=None),))
    (found,) = judge(alone, TASKS, Outcome(before, control, (merged,)), Rule(0.02, confidence))
    return found


def test_the_mean_over_the_tasks_of_the_merge_decides() -> None:
    """colour errs 0.1 less, shape 0.12 more: 0.01 more on average; size is not in the merge."""
    found = verdict(ONES, errors(0.9, 1.12, size=9.0))
    assert (round(found.against_control.change, 6), found.against_control.noise, found.accepted) == (0.01, 0.0, True)


def test_a_merge_that_costs_more_than_the_tolerance_is_undone() -> None:
    found = verdict(errors(0.5, 0.5), errors(0.9, 0.9))
    assert (round(found.against_control.change, 6), round(found.against_before, 6)) == (0.4, -0.1)
    assert not found.accepted


def test_noise_is_that_of_the_paired_differences() -> None:
    """Changes of +-0.3 around 0.1 on 4 examples: variance 0.09 * 4 / 3, so each task's error is 0.3 / sqrt(3)."""
    found = verdict(ONES, errors(1.1, 1.1, 0.3))
    assert found.against_control.noise == pytest.approx(0.3 / 3**0.5 / 2**0.5)
    common = verdict(errors(1, 1, 0.5), errors(1.1, 1.1, 0.5))
    assert common.against_control.noise == pytest.approx(0.0)  # what both arms share is no noise


def test_a_cost_inside_the_noise_is_forgiven_and_one_beyond_it_is_not() -> None:
    merged = errors(1.1, 1.1, 0.3)
    assert not verdict(ONES, merged).accepted
    assert verdict(ONES, merged, confidence=1.0).accepted  # 0.1 <= 0.02 + 0.122
    assert not verdict(ONES, merged, confidence=0.6).accepted  # 0.1 > 0.02 + 0.073


def test_a_task_that_over_fits_in_both_arms_does_not_condemn_a_merge() -> None:
    found = verdict(errors(1.5, 1.5), errors(1.4, 1.4))
    assert (round(found.against_before, 6), found.accepted) == (0.4, True)


def test_a_merge_without_validation_examples_is_kept() -> None:
    found = verdict({}, {}, before={})
    assert (found.against_control.change, found.accepted) == (0.0, True)


def both(whole: dict, pair: dict, *, tolerance: float = 0.0) -> list[tuple[tuple, bool]]:
    found = judge(Pending(PLANS, (PROPOSAL,)), TASKS, Outcome(ONES, ONES, (whole, pair)), Rule(tolerance, 0.0))
    return [(one.merge.result, one.accepted) for one in found]


def test_sharing_with_all_must_not_be_worse_than_sharing_with_the_right_ones() -> None:
    """The whole beats training apart by 5 %, but its task groups do so by 10 %."""
    assert both(errors(0.95, 0.95, size=0.95), errors(0.85, 0.85)) == [((0, 1, 2), False), ((0, 2), True)]


def test_a_whole_that_is_no_worse_wins_over_its_task_groups() -> None:
    assert both(errors(0.9, 0.9, size=0.9), errors(0.9, 0.9)) == [((0, 1, 2), True), ((0, 2), False)]


def test_the_tolerance_does_not_let_a_whole_win_that_is_worse_than_its_task_groups() -> None:
    """Both may cost 10 % against training apart; the whole costs 1 % more than its task groups."""
    found = both(errors(1.01, 1.01, size=1.01), ONES, tolerance=0.1)
    assert found == [((0, 1, 2), False), ((0, 2), True)]


def test_a_whole_that_is_worse_than_training_apart_loses_whatever_its_task_groups_do() -> None:
    assert both(errors(1.1, 1.1, size=1.1), errors(1.2, 1.2)) == [((0, 1, 2), False), ((0, 2), False)]


FOUR = TaskSet(tuple(TaskSpec(name=name, kind="regression", metric="pearson") for name in "abcd"))
# Tasks 0 and 1 are alike, and 2 and 3.
TWO_PAIRS = replace(
    propose(
        Frontier(0, ((0,), (1,), (2,), (3,))),
        Similarity.from_values(
            [[0, 0.2, -0.1, -0.1], [0.2, 0, -0.1, -0.1], [-0.1, -0.1, 0, 0.2], [-0.1, -0.1, 0.2, 0]]
        ),
        threshold=None,
    ),
    whole=None,
)


def pairs(first: float, second: float) -> list[bool]:
    """Whether two pairs of tasks are kept whose errors change by so much +- 0.3, so by 0.1225 standard errors."""
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    control = {name: np.ones(4) for name in "abcd"}
    arm = {name: 1 + change + 0.3 * signs for name, change in zip("abcd", (first, first, second, second), strict=True)}
    plan = MergePlan(0, TaskGrouping.one_per_task(4, 1), TWO_PAIRS.merges, (1, 1, 1, 1))
    found = judge(Pending((plan,), (TWO_PAIRS,)), FOUR, Outcome(control, control, (arm,)), Rule(0.0, 1.0))
    return [one.accepted for one in found]


def test_task_groups_that_cost_too_much_together_stay_only_if_they_cost_nothing() -> None:
    """The noise of one pair is 0.1225, that of both together 0.0866."""
    assert pairs(0.12, 0.04) == [True, True]  # together 0.08: each within its noise
    assert pairs(0.12, 0.06) == [False, False]  # together 0.09: noise does not excuse each of them any more
    assert pairs(0.2, -0.01) == [False, True]  # together 0.095; the second costs nothing
    assert pairs(0.2, -0.1) == [False, True]  # together 0.05: within noise, which the first pair alone is not
