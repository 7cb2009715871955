"""The drawn grid of the module, and what cannot be drawn."""

from __future__ import annotations

import pytest

from distmoe.errors import ParallelError
from distmoe.parallel.rank_grid import RankGrid


def test_tensor_ranks_are_neighbours() -> None:
    grids = [RankGrid(rank, 8, 2) for rank in range(8)]
    assert [grid.data_rank for grid in grids] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [grid.tensor_rank for grid in grids] == [0, 1] * 4
    assert {grid.num_data_ranks for grid in grids} == {4}


def test_a_set_of_data_ranks_exists_once_per_tensor_rank() -> None:
    assert RankGrid(4, 8, 2).world_ranks((0, 2)) == (0, 4)
    assert RankGrid(5, 8, 2).world_ranks((0, 2)) == (1, 5)


def test_without_tensor_parallelism_data_ranks_are_the_ranks() -> None:
    grid = RankGrid(3, 4)
    assert (grid.data_rank, grid.tensor_rank, grid.num_data_ranks, grid.world_ranks((1, 3))) == (3, 0, 4, (1, 3))


def test_ranks_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ParallelError, match=r"got: +6 ranks, parallel.tensor=4\n +expected: a divisor of 6"):
        RankGrid(0, 6, 4)
