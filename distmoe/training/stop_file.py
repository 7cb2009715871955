"""The file ``stop`` in a run's folder: whoever makes it asks the run to save and end at the next step border."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import TracebackType

from distmoe.training.stop_signal import StopSignal

_TICK = 1.0  # seconds between two looks


class StopFile:
    """Context of a run, on rank 0: looks for the file once a second, in a thread of its own.

    The folder may be on a network: a look that fails says nothing, and one that hangs holds up nobody.

    Args:
        path: The file; one of an earlier run is removed.
        stop: Who is told.
    """

    def __init__(self, path: Path, stop: StopSignal) -> None:
        self._path, self._stop = path, stop
        self._closed = threading.Event()

    def __enter__(self) -> None:
        self._path.unlink(missing_ok=True)
        threading.Thread(target=self._look, name="distmoe-stop-file", daemon=True).start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()

    def _look(self) -> None:
        while not self._closed.wait(_TICK):
            with contextlib.suppress(OSError):
                if self._path.exists():
                    self._stop.ask(f"the file {self._path}")
