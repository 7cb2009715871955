"""Which rows a rank has; what travels is compared with one process in tests/distributed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distmoe.parallel.sequence import own_rows


@pytest.mark.parametrize(
    ("num_rows", "num_ranks", "expected"),
    [
        (6, 2, [[1, 2, 3], [4, 5, 6]]),
        (5, 2, [[1, 2, 3], [4, 5, 0]]),
        (6, 4, [[1, 2], [3, 4], [5, 6], [0, 0]]),
        (1, 2, [[1], [0]]),
        (0, 2, [[], []]),
    ],
)
def test_rows_are_dealt_in_runs_and_filled_up_with_zeros(
    num_rows: int, num_ranks: int, expected: list[list[int]]
) -> None:
    whole = torch.arange(1, num_rows + 1)
    groups: list[Any] = [
        SimpleNamespace(rank=lambda rank=rank: rank, size=lambda: num_ranks) for rank in range(num_ranks)
    ]
    assert [own_rows(whole, group).tolist() for group in groups] == expected
