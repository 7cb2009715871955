"""One writer per run folder.

Ranks can outlive their launcher (``kill -9`` of it, a lost terminal). A second start would then drop lines from a log
that the first still writes, and remove the draft of its next checkpoint. The lock is the kernel's: it ends with the
process that holds it, however that ends, so there is nothing to clean up.
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

from distmoe.errors import CheckpointError
from distmoe.log import get_logger

_log = get_logger(__name__)


class RunLock:
    """Held by rank 0 while a run is written; ``.NAME.lock`` beside the run's folder, which may be moved or renamed.

    Args:
        run: The run's folder; need not exist.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            CheckpointError: If another process holds it; the message names it.
        """
        path = self._run.with_name(f".{self._run.name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise CheckpointError(
                f"{self._run} is being written by another process",
                got=f"held by {holder}",
                expected="one training process group per run folder",
                remedy="wait for it or end it (its launcher may be gone already), or name another run (run.name=...)",
            ) from None
        except OSError as failure:  # some network file systems have no locks
            _log.info("%s cannot be locked (%s): see to it that no other process writes this run", self._run, failure)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Gives the lock back; a process without it may call this too."""
        if self._file is not None:
            self._file.close()
            self._file = None
