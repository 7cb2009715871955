from pathlib import Path

import pytest

from distmoe.errors import CheckpointError
from distmoe.training.run_lock import RunLock


def test_a_run_has_one_writer_at_a_time(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path / "run"), RunLock(tmp_path / "run")
    first.acquire()
    with pytest.raises(CheckpointError, match=r"is being written(.|\n)*got:      held by process \d+ on "):
        second.acquire()
    RunLock(tmp_path / "other").acquire()
    first.release()
    second.acquire()
    second.release()
    second.release()


def test_the_lock_lies_beside_the_folder(tmp_path: Path) -> None:
    """A folder that is to be claimed must be empty, and an older run is moved aside under another name."""
    lock = RunLock(tmp_path / "runs" / "r")
    lock.acquire()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".r.lock"]
    lock.release()
