"""What the ranks tell each other at the border of a step: is a loss not finite, has a stop signal come.

One small all-reduce per optimizer step, between the backward pass and the update. Reading it waits for the device,
which the gradient norm of the update does anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
import torch.distributed as dist

from distmoe.data.batch import TaskBatch
from distmoe.errors import TrainingError
from distmoe.tasks import TaskSet
from distmoe.training.agreement import is_distributed
from distmoe.training.objective import LossBreakdown

_SHOWN = 12


def agree(losses: Sequence[LossBreakdown], *, stop: bool) -> tuple[bool, bool]:
    """Returns (all losses are finite, some rank wants to stop), equal on all ranks. Collective."""
    broken = 1.0 - torch.stack([one.finite for one in losses]).amin()
    flags = torch.stack([broken, torch.full_like(broken, float(stop))])
    if is_distributed():
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    not_finite, stopped = flags.tolist()
    return not not_finite, bool(stopped)


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
    rows = [row for of_rank in found for row in of_rank]
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
