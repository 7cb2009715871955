"""A small process beside each rank that ends it when it cannot end itself: stopped, or with its interpreter blocked.

It is fed a byte per second through a pipe; when none comes for so long, it kills the rank (SIGKILL also ends a stopped
process), and the launcher sees that. It leaves when the pipe closes, so it never outlives its rank for long.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

# Only what is started fast. Its own waiting is counted, not the clock: a suspended job is not killed when it goes on.
# The pipe may be held open by a process that the rank started; the parent tells whether the rank itself still lives.
_CODE = """
import os, select, signal, sys
rank, limit, quiet = int(sys.argv[1]), int(sys.argv[2]), 0
while os.getppid() == rank and quiet < limit:
    if select.select([0], [], [], 1.0)[0]:
        if not os.read(0, 4096):
            sys.exit(0)
        quiet = 0
    else:
        quiet += 1
if os.getppid() == rank:
    os.kill(rank, signal.SIGKILL)
"""


class Guardian:
    """Watches this process from outside.

    Args:
        limit: Seconds without :meth:`feed` after which this process is killed.
    """

    def __init__(self, *, limit: int) -> None:
        # Slurm and terminals send signals to all processes of a job; the guardian leaves when its rank does. A signal
        # mask is inherited, unlike a handler.
        held = {signal.SIGUSR1, signal.SIGINT, signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", _CODE, str(os.getpid()), str(limit)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def feed(self) -> None:
        """Says that this process runs."""
        assert self._process.stdin is not None
        try:
            os.write(self._process.stdin.fileno(), b".")
        except OSError:  # it was ended from outside: the run goes on without it
            return

    def dismiss(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
