"""Verdicts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from distmoe.structure.plan import Merge
from distmoe.training.structural.trial import Verdict, judge
from tests.unit.training.samples import TASKS

MERGE = Merge(0, ((0,), (2,)))


def losses(colour: float, shape: float, spread: float = 0.0) -> dict[str, np.ndarray]:
    """Four examples per task, half of them ``spread`` above and half below; size is in no merge."""
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    return {"colour": colour + spread * signs, "size": np.full(4, 9.0), "shape": shape + spread * signs}


def verdict(control: dict, merged: dict, *, before: dict | None = None, confidence: float = 0.0) -> Verdict:
    (found,) = judge(
        [MERGE], TASKS, before=before or losses(1, 1), control=control, merged=merged, tolerance=0.02,
        confidence=confidence,
    )  # fmt: skip
    return found


def test_the_mean_over_the_tasks_of_the_merge_decides() -> None:
    """colour is 10 % better, shape 12 % worse: 1 % worse on average."""
    found = verdict(losses(1, 1), losses(0.9, 1.12))
    assert (round(found.against_control, 6), found.noise, found.accepted) == (1.01, 0.0, True)


def test_a_merge_that_costs_more_than_the_tolerance_is_undone() -> None:
    found = verdict(losses(0.5, 0.5), losses(0.9, 0.9))
    assert (round(found.against_control, 6), round(found.against_before, 6), found.accepted) == (1.8, 0.9, False)


def test_noise_is_that_of_the_paired_differences() -> None:
    """Changes of +-0.3 around 0.1 on 4 examples: variance 0.09 * 4 / 3, so each task's error is 0.3 / sqrt(3)."""
    found = verdict(losses(1, 1), losses(1.1, 1.1, 0.3))
    assert found.noise == pytest.approx(0.3 / 3**0.5 / 2**0.5)
    common = verdict(losses(1, 1, 0.5), losses(1.1, 1.1, 0.5))
    assert common.noise == pytest.approx(0.0)  # what both arms share is no noise


def test_a_loss_inside_the_noise_is_forgiven_and_one_beyond_it_is_not() -> None:
    control, merged = losses(1, 1), losses(1.1, 1.1, 0.3)
    assert not verdict(control, merged).accepted
    assert verdict(control, merged, confidence=1.0).accepted  # 0.1 <= 0.02 + 0.122
    assert not verdict(control, merged, confidence=0.6).accepted  # 0.1 > 0.02 + 0.073


def test_a_task_that_over_fits_in_both_arms_does_not_condemn_a_merge() -> None:
    found = verdict(losses(1.5, 1.5), losses(1.4, 1.4), before=losses(1, 1))
    assert (round(found.against_before, 6), found.accepted) == (1.4, True)


def test_a_merge_without_validation_examples_is_kept() -> None:
    (found,) = judge([MERGE], TASKS, before={}, control={}, merged={}, tolerance=0.0, confidence=0.0)
    assert (found.against_control, found.accepted) == (1.0, True)
