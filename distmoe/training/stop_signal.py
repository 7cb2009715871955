"""Signals that end a run at the next step border, with a checkpoint.

The handler only sets a flag; the trainer lets all ranks agree on it, because only some may have got the signal.
A second SIGINT is not caught: an impatient user can still interrupt.
"""

from __future__ import annotations

import signal
from types import FrameType


class StopSignal:
    """Remembers that a signal has come."""

    def __init__(self) -> None:
        self.name: str | None = None

    @property
    def received(self) -> bool:
        return self.name is not None

    def ask(self, name: str) -> None:
        """What a signal does, from within: the run ends at the next step border."""
        self.name = self.name or name

    def expect_warning(self) -> StopSignal:
        """Listens for SIGUSR1, by which Slurm warns that time is up. Call it early: without a handler it kills."""
        signal.signal(signal.SIGUSR1, self._handle)
        return self

    def arm(self) -> StopSignal:
        """Listens for SIGTERM and SIGINT too. Call it when training begins; until then they end the process at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        return self.expect_warning()

    def disarm(self) -> None:
        """Gives SIGTERM and SIGINT their usual meaning again."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.name == "SIGINT":
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
