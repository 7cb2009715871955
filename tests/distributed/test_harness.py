"""The harness itself: answers in order, errors named by rank, hangs and deaths bounded."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from distmoe.errors import ParallelError
from tests.distributed.harness import RankError, run_ranks


def _sum(rank: int, scale: float) -> tuple[int, float, str]:
    x = torch.tensor(scale * rank)
    dist.all_reduce(x)
    return rank, x.item(), os.environ["PYTHONHASHSEED"]


def _raise_on_one(rank: int) -> None:
    if rank == 1:
        raise ParallelError("broken", got=1, expected=2, remedy="none")
    dist.barrier()


def _die_on_one(rank: int) -> None:
    if rank == 1:
        os._exit(7)
    dist.barrier()


def _sleep_on_one(rank: int) -> None:
    if rank == 1:
        time.sleep(100)


def test_values_come_back_in_order_of_rank() -> None:
    assert run_ranks(_sum, 2, 0.5) == [(0, 0.5, "1"), (1, 0.5, "2")]


def test_an_exception_names_its_rank_and_keeps_its_type() -> None:
    with pytest.raises(RankError, match=r"rank 1: (?s:.*)_raise_on_one(?s:.*)ParallelError: broken") as caught:
        run_ranks(_raise_on_one, 2)
    assert isinstance(caught.value.__cause__, ParallelError)
    assert caught.value.__cause__.remedy == "none"


def test_a_rank_that_dies_is_named_before_those_that_notice() -> None:
    with pytest.raises(RankError, match="rank 1: ended with code 7"):
        run_ranks(_die_on_one, 2)


def test_a_hung_rank_shows_where_it_stands() -> None:
    with pytest.raises(RankError, match=r"rank 1: (?s:.*)_sleep_on_one"):
        run_ranks(_sleep_on_one, 2, timeout=3)
