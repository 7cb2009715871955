"""Who speaks when rank 0 is gone. What a watched run does is in ``tests/distributed/test_watch.py``."""

from __future__ import annotations

import pytest

from distmoe.parallel.watch.watch import _deputy


@pytest.mark.parametrize(
    ("hosts", "rank"),
    [("aabb", 2), ("aaaabb", 4), ("aabbbb", 2), ("abba", 1), ("aaa", 1)],
)
def test_the_first_rank_of_another_machine_speaks_however_many_ranks_each_has(hosts: str, rank: int) -> None:
    assert _deputy(list(hosts)) == rank
