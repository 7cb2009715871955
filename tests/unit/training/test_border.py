import math

import pytest
import torch

from distmoe.errors import TrainingError
from distmoe.tasks import TaskGrouping
from distmoe.training import border
from distmoe.training.border import Border, agree, refuse_nonfinite
from distmoe.training.objective import LossBreakdown, Objective
from tests.unit.training.samples import TASKS, batch, output


def losses_of(values: list[float], ids: list[int]) -> tuple[LossBreakdown, object]:
    """Regression rows whose prediction is ``values``, with label 0."""
    rows = batch([1] * len(values), [0.0] * len(values), example_ids=ids)
    logits = torch.tensor([[value, -math.inf, -math.inf] for value in values])
    return Objective(TASKS, TaskGrouping(3, ()), weights=None)(output(logits), rows), rows


def test_one_bad_micro_batch_makes_the_step_bad() -> None:
    good, bad = losses_of([1.0], [0])[0], losses_of([math.inf], [0])[0]
    assert agree([good, good], stop=False, save_failed=True) == Border(finite=True, stop=False, save_failed=True)
    assert agree([good, bad], stop=True, save_failed=False) == Border(finite=False, stop=True, save_failed=False)


def test_the_error_names_step_task_and_examples() -> None:
    good, good_rows = losses_of([1.0, 2.0], [4, 5])
    bad, bad_rows = losses_of([math.nan, 1.0, math.inf], [7, 8, 9])
    with pytest.raises(
        TrainingError, match=r"(?s)the loss of step 12 is not finite.*size#7, size#9\n.*on_nonfinite=skip"
    ):
        refuse_nonfinite(12, [good, bad], [good_rows, bad_rows], TASKS)


def test_many_rows_are_counted_not_listed() -> None:
    bad, rows = losses_of([math.nan] * 20, list(range(20)))
    with pytest.raises(TrainingError, match=r"size#11, and 8 more"):
        refuse_nonfinite(0, [bad], [rows], TASKS)


def test_without_a_bad_row_the_auxiliary_loss_is_named() -> None:
    good, rows = losses_of([1.0], [0])
    with pytest.raises(TrainingError, match="an auxiliary loss is not"):
        refuse_nonfinite(0, [good], [rows], TASKS)


def test_examples_that_tensor_ranks_share_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bad, rows = losses_of([math.nan, math.inf], [7, 9])
    monkeypatch.setattr(border, "is_distributed", lambda: True)
    monkeypatch.setattr(border.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(border.dist, "all_gather_object", lambda found, own: found.__setitem__(slice(None), [own, own]))
    with pytest.raises(TrainingError, match=r"not finite for size#7, size#9\n"):
        refuse_nonfinite(0, [bad], [rows], TASKS)
