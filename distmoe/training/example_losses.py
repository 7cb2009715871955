"""The loss of every row of a batch, whatever its task asks for.

Shape letters: B sequences, S positions, C output columns of the widest head, L answered positions, V vocabulary,
N tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distmoe.data.batch import NO_LOSS, TaskBatch
from distmoe.models.output import ModelOutput, TokenOutput
from distmoe.tasks import TaskSet


@dataclass(frozen=True)
class RowLosses:
    """Losses of a batch's rows.

    Attributes:
        sum_B: Sum over what a row is asked for: one label, or its target tokens; float32, differentiable.
        count_B: How many that are, float32.
    """

    sum_B: Tensor
    count_B: Tensor

    @property
    def mean_B(self) -> Tensor:
        """Mean per row; 0 for a row without target token."""
        return self.sum_B / self.count_B.clamp(min=1)


def regression_mask(tasks: TaskSet, device: torch.device | str = "cpu") -> Tensor:
    """``[N]`` bool: which tasks are regressions."""
    return torch.tensor([spec.is_regression for spec in tasks], dtype=torch.bool, device=device)


def row_losses(output: ModelOutput | TokenOutput, batch: TaskBatch, regression_N: Tensor) -> RowLosses:
    """Returns the losses of a model's answer."""
    if isinstance(output, TokenOutput):
        return token_losses(output, batch)
    loss_B = example_losses(output.logits_BC, batch.labels_B, regression_N[batch.task_ids_B])
    return RowLosses(loss_B, torch.ones_like(loss_B))


def example_losses(logits_BC: Tensor, labels_B: Tensor, is_regression_B: Tensor) -> Tensor:
    """Cross-entropy of classification rows and squared error of regression rows, float32: ``[B]``.

    Columns beyond a task's outputs hold ``-inf``: they take no part in the softmax and get exactly zero gradient.
    """
    logits_BC = logits_BC.float()
    class_ids_B = torch.where(is_regression_B, 0, labels_B).long()
    cross_entropy_B = -F.log_softmax(logits_BC, dim=-1).gather(1, class_ids_B.unsqueeze(1)).squeeze(1)
    squared_error_B = (logits_BC[:, 0] - labels_B.float()).square()
    return torch.where(is_regression_B, squared_error_B, cross_entropy_B)


def token_losses(output: TokenOutput, batch: TaskBatch) -> RowLosses:
    """Cross-entropy of the next token, in float32, at the positions that have a label."""
    targets_L = targets(output, batch)
    loss_L = F.cross_entropy(output.logits_LV.float(), targets_L, ignore_index=NO_LOSS, reduction="none")
    return RowLosses(by_row(loss_L, output, batch), by_row((targets_L != NO_LOSS).float(), output, batch))


def targets(output: TokenOutput, batch: TaskBatch) -> Tensor:
    """Labels of the answered positions, ``[L]`` int64; a placeholder answers nowhere and needs no labels."""
    if batch.labels_BS is None:
        assert not output.index_L.shape[0], "a decoder's batch has labels_BS"
        return output.index_L
    return batch.labels_BS.flatten().index_select(0, output.index_L)


def by_row(values_L: Tensor, output: TokenOutput, batch: TaskBatch) -> Tensor:
    """Sum of the values of each row's positions, ``[B]``."""
    zeros_B = torch.zeros(batch.task_ids_B.shape[0], dtype=values_L.dtype, device=values_L.device)
    return zeros_B.index_add(0, output.sequence_ids_L, values_L)


def predictions(logits_BC: Tensor, is_regression_B: Tensor) -> Tensor:
    """Class id of the largest logit, or column 0 for a regression; NaN where a row is not finite: ``[B]`` float64."""
    classes_B = logits_BC.argmax(dim=-1)
    best_B = logits_BC.gather(1, classes_B.unsqueeze(1)).squeeze(1)
    value_B = torch.where(is_regression_B, logits_BC[:, 0].double(), classes_B.double())
    return torch.where(best_B.isfinite(), value_B, torch.nan)
