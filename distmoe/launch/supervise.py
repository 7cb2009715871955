"""Starts a run, waits for it, and starts it again from its last checkpoint when it fails.

A failure is any end but these: finished, refused (code 2: the next attempt would be refused as well), stopped on
request. A launcher that ends with 0 while ranks live on has failed too: DeepSpeed's does that when it is killed.

A request to end (SIGTERM, Ctrl-C) is not handed to the launcher, which would end its ranks after 30 s, and over ssh
end every DeepSpeed job of the hosts. It becomes the file ``stop`` in the run's folder, made again each second until the
run has ended: rank 0 sees it within a second, or as soon as a run that still prepares has its folder. All ranks save at
the same step border and leave. A second request kills what was started on this machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from distmoe.checkpoint import folders
from distmoe.checkpoint.manifest import MANIFEST_NAME
from distmoe.launch.command import Command
from distmoe.train import OWN_ERROR, USER_ERROR
from distmoe.training.run_folder import RESULT_FILE, STOP_FILE

LONGEST_PAUSE = 600.0  # seconds
_TICK = 1.0  # seconds between two looks at a request to end
_GRACE = 5.0  # seconds that processes get to end by themselves


@dataclass(frozen=True)
class Policy:
    """How often to start again.

    Attributes:
        restarts: Failures in a row without a new checkpoint that are followed by another start.
        pause: Seconds before the first of them; doubled each time.
    """

    restarts: int
    pause: float

    def pause_before(self, attempt: int) -> float:
        """Seconds to wait before restart ``attempt``, counted from 1 since the last new checkpoint."""
        return min(LONGEST_PAUSE, self.pause * 2 ** (attempt - 1))


class Supervisor:
    """Runs one command until its run has ended.

    Args:
        run: The run's folder.
        policy: How often to start again.
        say: Where messages go.
    """

    def __init__(self, run: Path, policy: Policy, *, say: Callable[[str], None]) -> None:
        self._run, self._policy, self._say = run, policy, say
        self._child: subprocess.Popen[bytes] | None = None
        self._asked: int | None = None  # the signal that asked for the end

    def supervise(self, command: Callable[[bool], Command]) -> int:
        """Returns the exit code: 0 finished or left in order, 2 refused, 1 given up, 128 + n stopped by signal n.

        Args:
            command: ``command(is_restart)`` for the next start; may raise a user error.
        """
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return self._until_the_end(command)
        finally:
            self._clear_up()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _until_the_end(self, command: Callable[[bool], Command]) -> int:
        failures, progress, is_restart = 0, self._progress(), False
        while True:
            code = self._once(command(is_restart))
            if self._asked is not None:
                return 128 + self._asked
            if code == USER_ERROR:
                return code
            if code == 0:
                if not (self._run / RESULT_FILE).exists():
                    self._say("the run was stopped in order; the same command goes on")
                return 0
            if self._progress() != progress:
                failures, progress = 0, self._progress()
            failures += 1
            if failures > self._policy.restarts:
                self._say(f"given up: failure {failures} without a new checkpoint (--restarts {self._policy.restarts})")
                return OWN_ERROR
            pause = self._policy.pause_before(failures)
            since = "the start" if progress is None else progress[0].name
            count = f"restart {failures} of {self._policy.restarts} since {since}"
            self._say(f"the run ended with code {code}; {count} in {pause:g} s")
            self._sleep(pause)
            if self._asked is not None:
                return 128 + self._asked
            is_restart = True

    def _once(self, command: Command) -> int | None:
        """Returns the exit code, or None if the end was asked for before anything was started."""
        if self._asked is not None:
            return None
        self._say(str(command))
        # A session of its own: a signal of the terminal reaches this process only, and what is left can be ended
        # through its process group, whoever started it.
        child = self._child = subprocess.Popen(
            command.words, env=os.environ | dict(command.variables), start_new_session=True, stdin=subprocess.DEVNULL
        )
        code: int | None = None
        while code is None:
            if self._asked is not None:
                self._ask_for_the_end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(timeout=_TICK)
        left = self._clear_up()
        self._child = None
        if left and code == 0:
            self._say("the launcher left ranks behind")
            return OWN_ERROR
        return code

    def _progress(self) -> tuple[Path, int] | None:
        """The newest checkpoint and its time: a run that is started over has steps of the same names."""
        newest = folders.latest(self._run / "checkpoints")
        with contextlib.suppress(FileNotFoundError):  # being saved again
            return None if newest is None else (newest, (newest / MANIFEST_NAME).stat().st_mtime_ns)
        return None

    def _ask_for_the_end(self) -> None:
        """Again and again: a run that is about to begin removes the file of an earlier one, or has no folder yet."""
        with contextlib.suppress(OSError):
            (self._run / STOP_FILE).touch()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        again, self._asked = self._asked is not None, number
        if self._child is None:  # nothing runs, or is being started at this moment and then asked
            self._say(f"{name}: no other start")
            return
        if not again:
            self._say(f"{name}: all ranks save at the next step border and leave; once more kills them")
            self._ask_for_the_end()
            return
        self._say(f"{name}: killing what was started on this machine; ranks on other hosts leave when they notice")
        self._signal_group(signal.SIGKILL)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._asked is None and time.monotonic() < end:
            time.sleep(0.2)

    def _clear_up(self) -> bool:
        """Ends what lives on in the child's process group; returns whether there was something."""
        if not self._signal_group(0):
            return False
        end = time.monotonic() + _GRACE
        while time.monotonic() < end:
            if not self._signal_group(0):
                return False
            time.sleep(0.1)
        self._signal_group(signal.SIGTERM)
        while self._signal_group(0) and time.monotonic() < end + _GRACE:
            time.sleep(0.1)
        self._signal_group(signal.SIGKILL)
        return True

    def _signal_group(self, number: int) -> bool:
        if self._child is None:
            return False
        try:
            os.killpg(self._child.pid, number)
        except ProcessLookupError:
            return False
        return True


def to_stderr(text: str) -> None:
    """In one write: the ranks' lines share the stream."""
    sys.stderr.write(f"launch: {text}\n")
    sys.stderr.flush()
