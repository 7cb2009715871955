import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distmoe.data.batch import TaskBatch
from distmoe.models.output import ModelOutput
from distmoe.moe.config import AuxiliaryLossConfig
from distmoe.moe.routing import Routing, TokenContext
from distmoe.tasks import TaskGrouping
from distmoe.training.example_losses import example_losses, predictions, regression_mask
from distmoe.training.objective import Objective
from tests.unit.training.samples import TASKS, batch, output

INF = float("inf")
DENSE = TaskGrouping(len(TASKS), ())


def padded(rows: list[list[float]]) -> Tensor:
    return torch.tensor([row + [-INF] * (3 - len(row)) for row in rows])


def slow_losses(logits_BC: Tensor, labels: list[float], task_ids: list[int]) -> list[float]:
    """Row by row, on the task's own columns only."""
    losses = []
    for row, label, task in zip(logits_BC, labels, task_ids, strict=True):
        own = row[: TASKS[task].num_outputs]
        if TASKS[task].is_regression:
            losses.append((own[0] - label).square().item())
        else:
            losses.append(F.cross_entropy(own.unsqueeze(0), torch.tensor([int(label)])).item())
    return losses


def test_mixed_rows_have_the_losses_of_their_own_task() -> None:
    torch.manual_seed(0)
    task_ids, labels = [0, 1, 2, 1, 0], [2.0, -0.5, 1.0, 3.25, 0.0]
    logits_BC = padded([torch.randn(TASKS[task].num_outputs).tolist() for task in task_ids])
    found = example_losses(logits_BC, torch.tensor(labels), regression_mask(TASKS)[torch.tensor(task_ids)])
    assert found.tolist() == pytest.approx(slow_losses(logits_BC, labels, task_ids), rel=1e-6)


def test_padding_columns_get_exactly_zero_gradient_and_no_nan() -> None:
    values = torch.randn(3, 3, requires_grad=True)
    padding = torch.tensor([[False] * 3, [False, True, True], [False, False, True]])
    logits_BC = values.masked_fill(padding, -INF)
    losses = example_losses(logits_BC, torch.tensor([1.0, 0.5, 0.0]), torch.tensor([False, True, False]))
    losses.sum().backward()
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()
    assert (values.grad[padding] == 0).all()
    # d/dy (y - 0.5)^2; the cross-entropy that is not chosen adds nothing.
    assert values.grad[1, 0].item() == pytest.approx(2 * (values[1, 0].item() - 0.5))


def test_total_is_the_weighted_sum_and_placeholders_count_nowhere() -> None:
    logits_BC = padded([[0.0, 0.0, 0.0], [2.0], [5.0, 1.0]])
    rows = batch([0, 1, 2], [0.0, 1.0, 0.0], weights=[0.5, 0.25, 0.0], mask=[True, True, False])
    losses = Objective(TASKS, DENSE, weights=None)(output(logits_BC), rows)
    assert losses.total.item() == pytest.approx(0.5 * math.log(3) + 0.25 * 1.0)
    assert losses.sum_by_task_N.tolist() == pytest.approx([math.log(3), 1.0, 0.0])
    assert losses.count_by_task_N.tolist() == [1.0, 1.0, 0.0]
    assert losses.finite.item() == 1.0


def test_a_loss_that_is_not_finite_is_flagged() -> None:
    losses = Objective(TASKS, DENSE, weights=None)(output(padded([[math.nan]])), batch([1], [0.0]))
    assert losses.finite.item() == 0.0


def routed_output(probs_TE: Tensor, rows: TaskBatch) -> ModelOutput:
    ids_TK = probs_TE.argmax(dim=1, keepdim=True)
    routing = Routing(ids_TK, probs_TE.gather(1, ids_TK), probs_TE, probs_TE.log())
    context = TokenContext(rows.task_ids_B, torch.arange(len(rows.task_ids_B)), len(rows.task_ids_B))
    return ModelOutput(
        padded([[0.0] * TASKS[task].num_outputs for task in rows.task_ids_B.tolist()]), (routing,), context
    )


def test_auxiliary_losses_enter_with_their_weight_and_are_reported_without_it() -> None:
    """Tokens .51 .49 | .51 .49 | 0 1: balance loss 2 (2/3 * 1.02/3 + 1/3 * 1.98/3) = .8933."""
    rows = batch([0, 0, 0], [0.0] * 3, weights=[0.0] * 3)
    probs_TE = torch.tensor([[0.51, 0.49], [0.51, 0.49], [1e-30, 1.0]])
    objective = Objective(TASKS, TaskGrouping.one_group(3, 1), weights=AuxiliaryLossConfig(balance=0.1))
    assert objective.auxiliary_names == ("balance",)
    losses = objective(routed_output(probs_TE, rows), rows)
    assert losses.auxiliary["balance"].item() == pytest.approx(2 * (2 / 3 * 1.02 / 3 + 1 / 3 * 1.98 / 3), rel=1e-5)
    assert losses.total.item() == pytest.approx(0.1 * losses.auxiliary["balance"].item())


def test_a_dense_model_has_no_auxiliary_losses_whatever_the_weights() -> None:
    assert Objective(TASKS, DENSE, weights=AuxiliaryLossConfig(balance=0.1)).auxiliary_names == ()


def test_predictions_are_classes_numbers_or_nan() -> None:
    logits_BC = padded([[0.0, 3.0, 1.0], [2.5], [math.nan, 0.0]])
    found = predictions(logits_BC, torch.tensor([False, True, False]))
    assert found[:2].tolist() == [1.0, 2.5]
    assert math.isnan(found[2].item())
