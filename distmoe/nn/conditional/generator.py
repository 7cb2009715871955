"""Generators: from a row's conditioning to the numbers that modulate a module.

Shape letters: B sequences, T tasks, k width of a task embedding, m generated numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmoe.nn.conditional.module import ConditionalModule
from distmoe.nn.init import init_normal_

GeneratorKind = Literal["linear", "table"]


class Generator(ConditionalModule):
    """Makes ``m`` numbers per row; a module and layer has one of its own."""

    @abstractmethod
    def forward(self, task_ids_B: Tensor | None, z_Tk: Tensor | None) -> Tensor:
        """Returns ``[B, m]`` in float32, so that ``1 + gamma`` keeps a small gamma in half precision training too.

        Args:
            task_ids_B: Task of each row; None: one row per task, in their order.
            z_Tk: Embeddings of all tasks; tables do not read them.
        """


class LinearGenerator(Generator):
    """``W z + b``: tasks share W, so what one task learns moves all (a hypernetwork without a non-linearity).

    Args:
        embedding_size: k.
        size: m.
        zero: Whether W starts at zero as b does: the modulated module is then exact at first. False: N(0, std^2).
    """

    def __init__(self, embedding_size: int, size: int, *, zero: bool = True) -> None:
        super().__init__()
        self.zero = zero
        self.weight = nn.Parameter(torch.empty(size, embedding_size))
        self.bias = nn.Parameter(torch.empty(size))

    def reset(self, seed: int, name: str, std: float) -> None:
        nn.init.zeros_(self.bias)
        if self.zero:
            nn.init.zeros_(self.weight)
        else:
            init_normal_(self.weight, seed=seed, name=f"{name}.weight", std=std)

    def forward(self, task_ids_B: Tensor | None, z_Tk: Tensor | None) -> Tensor:
        assert z_Tk is not None, "a linear generator reads task embeddings"
        generated_Tm = F.linear(z_Tk, self.weight, self.bias)
        return (generated_Tm if task_ids_B is None else F.embedding(task_ids_B, generated_Tm)).float()


class TableGenerator(Generator):
    """A free row per task, zero at first: what a linear generator can express with at least T dimensions, uncoupled.

    The control of the question whether a hypernetwork matters.

    Args:
        num_tasks: T.
        size: m.
    """

    def __init__(self, num_tasks: int, size: int) -> None:
        super().__init__()
        self.table_Tm = nn.Parameter(torch.empty(num_tasks, size))

    def reset(self, seed: int, name: str, std: float) -> None:
        nn.init.zeros_(self.table_Tm)

    def forward(self, task_ids_B: Tensor | None, z_Tk: Tensor | None) -> Tensor:
        # A copy: a partitioned parameter (ZeRO-3) is released behind this.
        return (self.table_Tm.clone() if task_ids_B is None else F.embedding(task_ids_B, self.table_Tm)).float()


@dataclass(frozen=True)
class GeneratorFactory:
    """Makes the generators of a model, which differ in their number of outputs only.

    Attributes:
        kind: ``linear`` or ``table``.
        num_tasks: Rows of a table.
        embedding_size: Width that a linear generator reads; not used by tables.
        zero: Whether generated numbers are zero at first.
    """

    kind: GeneratorKind
    num_tasks: int
    embedding_size: int
    zero: bool = True

    def __call__(self, size: int) -> Generator:
        if self.kind == "table":
            return TableGenerator(self.num_tasks, size)
        return LinearGenerator(self.embedding_size, size, zero=self.zero)
