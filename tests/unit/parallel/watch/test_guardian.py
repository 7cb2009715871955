"""A process that cannot end itself is ended; one that gives signs, or ends, is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

LIMIT = 60
_RANK = """
import sys, time
from distmoe.parallel.watch.guardian import Guardian
guardian = Guardian(limit=2)
print(guardian._process.pid, flush=True)
for _ in range(int(sys.argv[1])):
    guardian.feed()
    time.sleep(0.5)
guardian.dismiss()
"""


def start(turns: int) -> tuple[subprocess.Popen[str], int]:
    rank = subprocess.Popen([sys.executable, "-c", _RANK, str(turns)], stdout=subprocess.PIPE, text=True)
    assert rank.stdout is not None
    return rank, int(rank.stdout.readline())


def gone(pid: int) -> bool:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_a_stopped_process_is_killed_and_nothing_is_left() -> None:
    rank, guardian = start(1000)
    os.kill(rank.pid, signal.SIGSTOP)
    assert rank.wait(timeout=LIMIT) == -signal.SIGKILL
    assert gone(guardian)


def test_a_process_that_gives_signs_lives_longer_than_the_limit_and_takes_its_guardian_along() -> None:
    rank, guardian = start(8)
    assert rank.wait(timeout=LIMIT) == 0
    assert gone(guardian)
