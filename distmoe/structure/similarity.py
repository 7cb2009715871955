"""The similarity matrix of the members of a frontier at one routed layer, in exact millionths.

Similarities come from floating-point sums whose last bits depend on the machine. They are rounded once, here, and all
decisions are made in integers: equal matrices lead to equal plans, and ties are real ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from distmoe.errors import DataError
from distmoe.structure.cka import cka_matrix

UNIT = 1_000_000


@dataclass(frozen=True)
class Similarity:
    """Symmetric matrix of similarities between members (tasks or task groups), in millionths.

    Raises:
        DataError: With fewer than two members, or a matrix that is not square and symmetric.
    """

    millionths: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        size = len(self.millionths)
        if size < 2:
            raise DataError(
                "similarity needs something to compare",
                got=f"{size} task(s)",
                expected="two or more",
                remedy="train two or more tasks, or switch structural learning off",
            )
        square = all(len(row) == size for row in self.millionths)
        if not square or self.millionths != tuple(zip(*self.millionths, strict=True)):
            raise DataError(
                "a similarity matrix must be square and symmetric",
                got=[list(row) for row in self.millionths],
                expected=f"{size} rows of {size}, equal to its transpose",
                remedy="build it with Similarity.from_values",
            )

    @classmethod
    def from_values(cls, values: Tensor | np.ndarray | Sequence[Sequence[float]]) -> Similarity:
        """Rounds the upper triangle of ``values`` ``[T, T]``.

        Raises:
            DataError: If a value is not finite, or there are fewer than two members.
        """
        matrix = np.asarray(torch.as_tensor(values, dtype=torch.float64).cpu())
        if not np.isfinite(matrix).all():
            raise DataError(
                "a similarity is not finite",
                got=matrix.tolist(),
                expected="finite numbers",
                remedy="look for activations that overflowed in the layer's outputs",
            )
        upper = np.triu(np.rint(matrix * UNIT).astype(np.int64))
        whole = upper + np.triu(upper, 1).T
        return cls(tuple(tuple(int(value) for value in row) for row in whole))

    @classmethod
    def from_features(cls, features_TND: Tensor) -> Similarity:
        """Unbiased linear CKA of every pair from the gathered features of all probe examples, in float64."""
        return cls.from_values(cka_matrix(features_TND.double()))

    @property
    def num_members(self) -> int:
        return len(self.millionths)

    def values(self) -> np.ndarray:
        """``[T, T]`` float64, for pictures and reports."""
        return np.array(self.millionths, dtype=np.float64) / UNIT

    def pairs_total(self, members: Sequence[int]) -> int:
        """Sum over the pairs among ``members``, in millionths."""
        return sum(self.millionths[first][second] for first, second in combinations(members, 2))

    def mean_within(self, members: Sequence[int]) -> float:
        """Mean over the pairs among two or more ``members``; 0 for one member."""
        num_pairs = len(members) * (len(members) - 1) // 2
        return self.pairs_total(members) / (num_pairs * UNIT) if num_pairs else 0.0

    def to_json(self) -> list[list[float]]:
        return [[value / UNIT for value in row] for row in self.millionths]
