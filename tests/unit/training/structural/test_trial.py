"""Verdicts by hand."""

from __future__ import annotations

from distmoe.structure.plan import Merge
from distmoe.training.structural.trial import judge
from tests.unit.training.samples import TASKS

MERGE = Merge(0, ((0,), (2,)))
ONES = {"colour": 1.0, "size": 1.0, "shape": 1.0}


def verdict(before: dict, control: dict, merged: dict) -> tuple[float, float, bool]:
    (found,) = judge([MERGE], TASKS, before=before, control=control, merged=merged, tolerance=0.02)
    return round(found.against_control, 6), round(found.against_before, 6), found.accepted


def test_the_mean_over_the_tasks_of_the_merge_decides() -> None:
    """colour is 10 % better, shape 12 % worse: 1 % worse on average; size is not in the merge."""
    assert verdict(ONES, ONES, {"colour": 0.9, "size": 9.0, "shape": 1.12}) == (1.01, 1.01, True)


def test_a_merge_that_loses_against_no_merge_is_rejected() -> None:
    better = {"colour": 0.5, "size": 1.0, "shape": 0.5}
    assert verdict(ONES, better, {"colour": 0.9, "size": 1.0, "shape": 0.9}) == (1.8, 0.9, False)


def test_a_merge_that_loses_against_the_state_before_is_rejected() -> None:
    worse = {"colour": 2.0, "size": 1.0, "shape": 2.0}
    assert verdict(ONES, worse, {"colour": 1.5, "size": 1.0, "shape": 1.5}) == (0.75, 1.5, False)
