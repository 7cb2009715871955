"""What is minimised: the mixture's task loss plus the gates' auxiliary losses.

All tasks of a batch go through the same operations; nothing depends on which tasks are present, so every rank runs
the same collectives (specification of task routing, section 8). Nothing here reads a device value on the host.

Shape letters: B sequences, N tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distmoe.data.batch import TaskBatch
from distmoe.models.output import ModelOutput, TokenOutput
from distmoe.moe.config import AuxiliaryLossConfig
from distmoe.moe.losses import router_losses
from distmoe.moe.routing import Routing
from distmoe.tasks import TaskGrouping, TaskSet
from distmoe.training.example_losses import regression_mask, row_losses
from distmoe.training.structural.alignment import AlignmentTerm


@dataclass(frozen=True)
class LossBreakdown:
    """One micro-batch's loss on this rank.

    Attributes:
        total: Differentiable scalar; its mean over ranks and accumulation steps is the objective.
        task: The task part of ``total``, detached.
        loss_B: Unweighted loss of every row, detached; names the rows when a loss is not finite.
        sum_by_task_N: Unweighted sum of this rank's losses per task, over examples or target tokens; float32,
            detached.
        count_by_task_N: What they are a sum over: real examples, or target tokens; float32.
        finite: 1.0 if ``total`` is finite, else 0.0; a device value.
        auxiliary: Name -> mean over routed layers of the value over the global batch, unweighted, detached; equal on
            all ranks.
    """

    total: Tensor
    task: Tensor
    loss_B: Tensor
    sum_by_task_N: Tensor
    count_by_task_N: Tensor
    finite: Tensor
    auxiliary: Mapping[str, Tensor]


class Objective:
    """Turns a model's output into losses.

    Args:
        tasks: The run's tasks.
        grouping: Who shares the routed layers.
        pool_sizes: Experts of each task group, per routed layer; None: equal shares of each layer's experts.
        weights: Weights of the auxiliary losses; ``None`` for a dense model.
        world_size: Ranks over which gradients are averaged.
        all_reduce: Returns the sum of a tensor over these ranks; ``None`` on one process.
        device: Where batches are.
        alignment: Of structural learning; its features must be in the outputs.
    """

    def __init__(
        self,
        tasks: TaskSet,
        grouping: TaskGrouping,
        *,
        pool_sizes: Sequence[Sequence[int]] | None = None,
        weights: AuxiliaryLossConfig | None,
        world_size: int = 1,
        all_reduce: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
        alignment: AlignmentTerm | None = None,
    ) -> None:
        self._num_tasks, self._alignment = len(tasks), alignment
        self._num_task_groups = [grouping.num_task_groups(layer) for layer in range(grouping.num_layers)]
        self._pool_sizes = pool_sizes
        self._weights = weights or AuxiliaryLossConfig()
        self._world_size, self._all_reduce = world_size, all_reduce
        self._regression_N = regression_mask(tasks, device)

    @property
    def auxiliary_names(self) -> tuple[str, ...]:
        """Auxiliary losses with a weight."""
        if not self._num_task_groups:
            return ()
        names = [name for name, weight in self._weights.model_dump().items() if weight > 0]
        return (*names, *(() if self._alignment is None else ("alignment",)))

    def __call__(self, output: ModelOutput | TokenOutput, batch: TaskBatch) -> LossBreakdown:
        """Collective if an auxiliary loss has a weight."""
        routers = router_losses(
            output.routings,
            output.context,
            weights=self._weights,
            num_tasks=self._num_tasks,
            pool_sizes=self._sizes(output.routings),
            world_size=self._world_size,
            all_reduce=self._all_reduce,
        )
        losses = row_losses(output, batch, self._regression_N)
        loss_B = losses.mean_B
        task = (batch.loss_weights_B * loss_B).sum()
        total = task + routers.total
        auxiliary = {name: values.mean() for name, values in routers.by_layer.items()}
        if self._alignment is not None:
            assert isinstance(output, ModelOutput), "structural learning compares encoders"
            alignment = self._alignment.loss(output.features)
            total = total + self._alignment.weight * alignment
            auxiliary["alignment"] = alignment.detach()
        # A scatter into all N slots costs the same whichever tasks are present; placeholders add zero to some slot.
        zeros_N = torch.zeros(self._num_tasks, dtype=torch.float32, device=loss_B.device)
        real_sum_B = torch.where(batch.example_mask_B, losses.sum_B.detach(), 0.0)
        real_count_B = torch.where(batch.example_mask_B, losses.count_B, 0.0)
        return LossBreakdown(
            total=total,
            task=task.detach(),
            loss_B=loss_B.detach(),
            sum_by_task_N=zeros_N.scatter_add(0, batch.task_ids_B, real_sum_B),
            count_by_task_N=zeros_N.scatter_add(0, batch.task_ids_B, real_count_B),
            finite=total.detach().isfinite().float(),
            auxiliary=auxiliary,
        )

    def _sizes(self, routings: Sequence[Routing]) -> Sequence[Sequence[int]]:
        if self._pool_sizes is not None:
            return self._pool_sizes
        return [
            [routing.probs_TE.shape[1] // count] * count
            for routing, count in zip(routings, self._num_task_groups, strict=True)
        ]
