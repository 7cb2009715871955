"""Who prints an error that a rank met before ranks could agree, and the exit code."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from distmoe import train
from distmoe.engine.distributed import _no_meeting
from distmoe.errors import ConfigError, DistmoeError, RankError
from distmoe.parallel.env import RankEnv

PARTS = {"got": "1", "expected": "2", "remedy": "mend it"}
COMMON, OWN = ConfigError("it is wrong", **PARTS), RankError("no GPU", **PARTS)


@pytest.fixture(autouse=True)
def restored_signal() -> Iterator[None]:
    kept = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, kept)


def ended(monkeypatch: pytest.MonkeyPatch, error: DistmoeError, *, rank: int, local_rank: int) -> int:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(train, "_run", fail)
    monkeypatch.setattr(train, "_HEAD_START", 0)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    return train.main([])


@pytest.mark.parametrize(
    ("error", "rank", "local_rank", "said"),
    [
        (COMMON, 0, 0, "error: it is wrong"),
        (COMMON, 1, 1, None),  # rank 0 has said it
        (COMMON, 8, 0, "[rank 8] error: it is wrong"),  # another machine may lack what rank 0's has
        (COMMON, 9, 1, None),
        (OWN, 9, 1, "[rank 9] error: no GPU"),
    ],
)
def test_an_error_is_printed_by_rank_0_by_one_rank_of_another_machine_or_by_the_rank_it_concerns(
    monkeypatch, capsys, error, rank, local_rank, said
) -> None:
    assert ended(monkeypatch, error, rank=rank, local_rank=local_rank) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[:1] == ([] if said is None else [said])


def test_ranks_that_do_not_meet_have_failed_and_are_not_refused(monkeypatch, capsys) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    error = _no_meeting(RankEnv(5, 8, 1, 4), RuntimeError("timed out"), 10)
    assert ended(monkeypatch, error, rank=5, local_rank=1) == 1
    assert capsys.readouterr().err.startswith("[rank 5] error: the ranks did not meet\n  got:      timed out (rank 5 ")
