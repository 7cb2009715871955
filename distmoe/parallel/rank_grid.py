"""The ranks of a run as a grid, data x tensor: pure arithmetic.

Tensor ranks are neighbours, so that they lie inside a node. Drawn, 8 ranks, ``parallel.tensor=2``::

    rank          0  1  2  3  4  5  6  7
    data rank     0  0  1  1  2  2  3  3     sees its own part of each batch
    tensor rank   0  1  0  1  0  1  0  1     holds its own slices of the dense matrices

Placement, data loading and losses know data ranks only. Whatever process group they ask for exists once per tensor
rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from distmoe.errors import ParallelError


@dataclass(frozen=True)
class RankGrid:
    """Position of one rank.

    Attributes:
        rank: In the whole run.
        num_ranks: Of the whole run.
        tensor: Tensor ranks, T; 1: every rank is a data rank.
    """

    rank: int = 0
    num_ranks: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        if self.num_ranks % self.tensor:
            raise ParallelError(
                "the ranks cannot be cut into tensor-parallel neighbours",
                got=f"{self.num_ranks} ranks, parallel.tensor={self.tensor}",
                expected=f"a divisor of {self.num_ranks}",
                remedy="change parallel.tensor, or start another number of processes (deepspeed --num_gpus)",
            )

    @property
    def num_data_ranks(self) -> int:
        return self.num_ranks // self.tensor

    @property
    def data_rank(self) -> int:
        return self.rank // self.tensor

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor

    def world_ranks(self, data_ranks: Iterable[int]) -> tuple[int, ...]:
        """Ranks of the run with these data ranks and this rank's tensor rank."""
        return tuple(data_rank * self.tensor + self.tensor_rank for data_rank in data_ranks)
