"""How much each example of a step weighs in the loss. Pure functions.

The weights are made from the step of *all* ranks, which every rank knows: a mean over ranks of each rank's own task
means would weigh a lone example on one rank like a whole batch of the same task on another.

Shape letters: N examples of the step, over all ranks and micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

TaskLoss = Literal["example_mean", "task_sum", "task_mean"]


def step_weights(
    task_ids_by_class: Sequence[npt.NDArray[np.int64]],
    *,
    rule: TaskLoss,
    corrections: Sequence[float],
    num_shares: int,
    batch_size: int,
) -> list[npt.NDArray[np.float32]]:
    """Returns the weight of every example, so that the mean over shares of ``sum(weight * loss)`` is the rule's loss.

    ``example_mean``: ``sum_i correction_i loss_i / batch_size``, whose expectation is the mixture's loss.
    ``task_sum``: sum over the tasks present of each task's mean loss (the objective of the CA-MTL paper).
    ``task_mean``: their mean (its published code).

    Args:
        task_ids_by_class: Tasks of the step's examples, per host class; a task occurs in one class only.
        rule: Which loss.
        corrections: Mixture weight over draw rate, per host class; only ``example_mean`` reads it.
        num_shares: Ranks times accumulation steps, over which the objective is averaged.
        batch_size: Examples of a full step.
    """
    if rule == "example_mean":
        return [
            np.full(len(task_ids_N), correction * num_shares / batch_size, dtype=np.float32)
            for task_ids_N, correction in zip(task_ids_by_class, corrections, strict=True)
        ]
    counts = np.bincount(np.concatenate(list(task_ids_by_class)))
    num_present = 1 if rule == "task_sum" else int(np.count_nonzero(counts))
    return [(num_shares / (num_present * counts[task_ids_N])).astype(np.float32) for task_ids_N in task_ids_by_class]
