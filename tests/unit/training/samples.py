"""Small values that several test files share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distmoe.data.batch import TaskBatch
from distmoe.models.output import ModelOutput
from distmoe.moe.routing import TokenContext
from distmoe.tasks import TaskSet, TaskSpec

TASKS = TaskSet(
    (
        TaskSpec(name="colour", kind="classification", metric="accuracy", labels=("red", "green", "blue"), family="a"),
        TaskSpec(name="size", kind="regression", metric="pearson", family="b"),
        TaskSpec(name="shape", kind="classification", metric="accuracy", labels=("round", "square"), family="a"),
    )
)


def batch(
    task_ids: Sequence[int],
    labels: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    example_ids: Sequence[int] | None = None,
    mask: Sequence[bool] | None = None,
) -> TaskBatch:
    """Rows of one token each."""
    size = len(task_ids)
    real = torch.tensor(mask or [True] * size)
    return TaskBatch(
        input_ids_BS=torch.ones(size, 1, dtype=torch.int64),
        attention_mask_BS=torch.ones(size, 1, dtype=torch.bool),
        token_type_ids_BS=torch.zeros(size, 1, dtype=torch.int64),
        task_ids_B=torch.tensor(task_ids, dtype=torch.int64),
        labels_B=torch.tensor(labels, dtype=torch.float32),
        loss_weights_B=torch.tensor(weights or [1.0] * size, dtype=torch.float32),
        example_ids_B=torch.tensor(example_ids or list(range(size)), dtype=torch.int64),
        example_mask_B=real,
        token_index_T=real.nonzero().squeeze(1),
    )


def output(logits_BC: Tensor) -> ModelOutput:
    """A dense model's answer."""
    size = logits_BC.shape[0]
    return ModelOutput(logits_BC, (), TokenContext(torch.zeros(size, dtype=torch.int64), torch.arange(size), size))
