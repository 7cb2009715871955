"""The file that asks a run to end, on file systems that fail and hang."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path

import pytest

from distmoe.training.stop_file import StopFile
from distmoe.training.stop_signal import StopSignal


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distmoe.training.stop_file._TICK", 0.01)


def test_the_file_of_an_earlier_run_is_removed_and_a_new_one_stops_the_run(tmp_path: Path) -> None:
    stop, path = StopSignal(), tmp_path / "stop"
    path.touch()
    with StopFile(path, stop):
        assert not path.exists()
        path.touch()
        end = time.monotonic() + 60
        while not stop.received and time.monotonic() < end:
            time.sleep(0.01)
    assert stop.name == f"the file {path}"


def test_a_file_system_that_fails_for_a_while_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, path, answers = StopSignal(), tmp_path / "stop", iter([OSError(errno.ESTALE, "stale"), OSError(), True])
    asked = threading.Event()

    def exists(self: Path) -> bool:
        answer = next(answers, True)
        if isinstance(answer, OSError):
            raise answer
        asked.set()
        return answer

    monkeypatch.setattr(Path, "exists", exists)
    with StopFile(path, stop):
        assert asked.wait(60)
        end = time.monotonic() + 60
        while not stop.received and time.monotonic() < end:
            time.sleep(0.01)
    assert stop.received


def test_a_file_system_that_hangs_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, release = threading.Event(), threading.Event()

    def exists(self: Path) -> bool:
        hangs.set()
        return not release.wait(60)

    monkeypatch.setattr(Path, "exists", exists)
    with StopFile(tmp_path / "stop", StopSignal()):
        assert hangs.wait(60)
    release.set()
