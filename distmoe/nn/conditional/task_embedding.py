"""From task ids to the conditioning of a batch.

Shape letters: B sequences, T tasks, k width of a task embedding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from distmoe.nn.conditional.conditioning import Conditioning
from distmoe.nn.conditional.module import ConditionalModule
from distmoe.nn.init import init_normal_

ConditionOn = Literal["task", "random_task", "one_task"]

# Odd multipliers of a 64-bit mix like splitmix64 (Steele et al. 2014); products wrap around.
_EXAMPLE, _TASK, _ROUNDS = 0x9E3779B97F4A7C1, 0x14D049BB133111EB, (0x3F58476D1CE4E5B9, 0x14D049BB133111EB)


class TaskTable(nn.Module):
    """The learned table.

    A module of its own because it returns a plain tensor: ZeRO-3 gathers a parameter for the backward pass when a
    gradient arrives at a tensor that the module returned, and does not find the tensors inside a frozen value.
    """

    def __init__(self, num_tasks: int, embedding_size: int) -> None:
        super().__init__()
        self.z_Tk = nn.Parameter(torch.empty(num_tasks, embedding_size))

    def forward(self, task_ids_B: Tensor) -> Tensor:
        """Returns a copy of all rows: a partitioned parameter is released behind this, and readers come later."""
        return self.z_Tk.clone()


class TaskConditioner(ConditionalModule):
    """One learned embedding per task; the gradients of absent tasks are zero, not missing.

    Args:
        num_tasks: T, rows of the table. More rows than tasks leave room to add some without changing any shape.
        embedding_size: k; None if no generator reads an embedding (``generator: table``): then nothing is learned here.
        published: Mode ``repo``: rows start at N(0, std^2) and a linear map, shared by all layers, follows the table.
        condition_on: Whose row an example reads; the other values than ``task`` are controls.
    """

    def __init__(
        self,
        num_tasks: int,
        embedding_size: int | None,
        *,
        published: bool = False,
        condition_on: ConditionOn = "task",
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.condition_on = condition_on
        self.published = published
        self.table = None if embedding_size is None else TaskTable(num_tasks, embedding_size)
        self.projection: nn.Linear | None = None
        if published:
            assert embedding_size is not None, "the published structure reads embeddings"
            self.projection = nn.Linear(embedding_size, embedding_size)

    @property
    def z_Tk(self) -> nn.Parameter | None:
        """The learned table, if there is one."""
        return None if self.table is None else self.table.z_Tk

    def reset(self, seed: int, name: str, std: float) -> None:
        if self.z_Tk is not None:
            # Length 1 in expectation. Generators are zero at first, and a step on z's product moves an output by
            # |z|^2 times what the same step on their bias does: at 1, what tasks share and what they do not learn at
            # one rate. (Never zero: with zero generators nothing would learn.)
            rows_std = std if self.published else self.z_Tk.shape[1] ** -0.5
            for task_id, row_k in enumerate(self.z_Tk):
                init_normal_(row_k, seed=seed, name=f"{name}.table.z_Tk", index=task_id, std=rows_std)
        if self.projection is not None:
            init_normal_(self.projection.weight, seed=seed, name=f"{name}.projection.weight", std=std)
            nn.init.zeros_(self.projection.bias)

    def forward(self, task_ids_B: Tensor, example_ids_B: Tensor | None = None) -> Conditioning:
        """Returns the conditioning of rows of the given tasks.

        Args:
            task_ids_B: Task of each row, int64.
            example_ids_B: Number of each row's example in its split, int64; ``random_task`` draws from it, so that an
                example meets the same task at every epoch, in training and in evaluation.
        """
        if self.condition_on == "one_task":
            task_ids_B = torch.zeros_like(task_ids_B)
        elif self.condition_on == "random_task":
            assert example_ids_B is not None, "a random task is drawn from the number of the example"
            mixed_B = example_ids_B * _EXAMPLE + (task_ids_B + 1) * _TASK
            for multiplier in _ROUNDS:
                mixed_B = (mixed_B ^ (mixed_B >> 29)) * multiplier
            task_ids_B = (mixed_B ^ (mixed_B >> 32)).remainder(self.num_tasks)
        if self.table is None:
            return Conditioning(task_ids_B, None, None)
        z_Tk = self.table(task_ids_B)
        return Conditioning(task_ids_B, z_Tk if self.projection is None else self.projection(z_Tk), z_Tk)
