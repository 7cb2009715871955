"""What the ranks tell each other at the border of a step: a loss is not finite, a stop signal has come, a save failed.

One small all-reduce per optimizer step, between the backward pass and the update. Reading it waits for the device,
which the gradient norm of the update does anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist

from distmoe.data.batch import TaskBatch
from distmoe.errors import TrainingError
from distmoe.tasks import TaskSet
from distmoe.training.agreement import is_distributed
from distmoe.training.objective import LossBreakdown

_SHOWN = 12


@dataclass(frozen=True)
class Border:
    """What is known at the border of a step, equal on all ranks.

    Attributes:
        finite: All losses are finite.
        stop: Some rank wants to stop.
        save_failed: Some rank knows that the save beside training failed.
    """

    finite: bool
    stop: bool
    save_failed: bool


def agree(losses: Sequence[LossBreakdown], *, stop: bool, save_failed: bool) -> Border:
    """Joins what each rank knows. Collective."""
    broken = 1.0 - torch.stack([one.finite for one in losses]).amin()
    flags = torch.stack([broken, broken.new_tensor(float(stop)), broken.new_tensor(float(save_failed))])
    if is_distributed():
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    not_finite, stopped, failed = map(bool, flags.tolist())
    return Border(finite=not not_finite, stop=stopped, save_failed=failed)


def refuse_nonfinite(
    step: int, losses: Sequence[LossBreakdown], batches: Sequence[TaskBatch], tasks: TaskSet
) -> NoReturn:
    """Stops the run with the examples whose loss is not finite. Collective.

    Raises:
        TrainingError: Always; the same on all ranks.
    """
    own = [row for one, batch in zip(losses, batches, strict=True) for row in _broken_rows(one, batch, tasks)]
    found: list[list[str]] = [own]
    if is_distributed():
        found = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(found, own)
    rows = list(dict.fromkeys(row for of_rank in found for row in of_rank))  # tensor ranks have the same examples
    if rows:
        more = f", and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        got = f"not finite for {', '.join(rows[:_SHOWN])}{more}"
    else:
        got = "every example's loss is finite, an auxiliary loss is not"
    raise TrainingError(
        f"the loss of step {step} is not finite",
        got=got,
        expected="a finite loss for every example",
        remedy="look at these training examples; lower optimizer.lr or raise schedule.warmup; use bf16, not fp16; "
        "or set run.on_nonfinite=skip. Go on from the last checkpoint with --resume auto",
    )


def _broken_rows(losses: LossBreakdown, batch: TaskBatch, tasks: TaskSet) -> list[str]:
    """``["sst2#17", ...]``: task and index of the example in its training split."""
    broken_B = ~losses.loss_B.isfinite() & batch.example_mask_B
    pairs = zip(batch.task_ids_B[broken_B].tolist(), batch.example_ids_B[broken_B].tolist(), strict=True)
    return [f"{tasks[task].name}#{example}" for task, example in pairs]
