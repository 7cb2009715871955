"""Saves at once, or beside training, always one checkpoint after the other.

Beside training a save has two parts::

    at the step border, on all ranks   wait for the save before; copy the rank's fragments to host memory
    in one thread per rank             chunks, checksums, manifest, rename; then old checkpoints are removed

The thread's collectives run over a process group of their own, so they never meet those of training. If a rank's part
fails, all ranks' saves fail with its error.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch.distributed import ProcessGroup

from distmoe.checkpoint import store
from distmoe.checkpoint.fragments import Fragment
from distmoe.checkpoint.host_copy import HostCopy
from distmoe.checkpoint.manifest import Manifest
from distmoe.checkpoint.progress import folder_bytes, reported, spell_bytes, tensor_bytes
from distmoe.checkpoint.rank_state import RankState
from distmoe.checkpoint.together import rank_of_process, together


class Saver:
    """Writes the checkpoints of a run. All ranks call :meth:`save` and :meth:`wait`, in the same order.

    Args:
        keep: Removes what need not be kept from the run's ``checkpoints/``; called on rank 0 after each complete save.
        background: Process group over all ranks, used by nothing else, for saves beside training; None: a save has
            ended when :meth:`save` returns.
    """

    def __init__(self, *, keep: Callable[[Path], object], background: ProcessGroup | None = None) -> None:
        self._keep, self._background = keep, background
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None
        self._host = HostCopy()

    @property
    def has_failed(self) -> bool:
        """Whether the save beside training has ended with an error. Ranks may learn of it at different times."""
        return self._running is not None and self._running.done() and self._running.exception() is not None

    def save(
        self,
        root: Path,
        *,
        manifest: Manifest,
        fragments: list[Fragment],
        trainer_state: Mapping[str, Any],
        rank_state: RankState,
        say: Callable[[str], None] = lambda text: None,
    ) -> Path:
        """Writes ``root/step_N`` and returns it; beside training, the folder appears when it is complete.

        Args:
            root: As for :func:`distmoe.checkpoint.store.save`, like the next four.
            manifest: See there.
            fragments: Their data may change as soon as this returns.
            trainer_state: The same holds for this one.
            rank_state: And for this one.
            say: Tells the user of rank 0 how far a long save is, and its size and time at the end.

        Raises:
            CheckpointError: On every rank, if this save failed, or the one before, which ran beside training.
        """
        self.wait()
        root, folder = Path(root), Path(root) / f"step_{manifest.step}"
        if self._background is None:
            self._write(root, fragments, manifest, trainer_state, rank_state, say)
            return folder
        # A rank whose memory does not hold the copy must not leave the others waiting.
        together(lambda: self._host.take(fragments), f"step {manifest.step} cannot be saved", root)
        states = copy.deepcopy((dict(trainer_state), dict(rank_state)))
        self._running = self._thread.submit(self._write, root, self._host.fragments, manifest, *states, say)
        return folder

    def wait(self) -> None:
        """Returns when no save is under way.

        Raises:
            CheckpointError: On every rank, once, if the save beside training failed.
        """
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def _write(
        self,
        root: Path,
        fragments: list[Fragment],
        manifest: Manifest,
        trainer_state: Mapping[str, Any],
        rank_state: RankState,
        say: Callable[[str], None],
    ) -> None:
        began, first = time.perf_counter(), rank_of_process() == 0
        draft = root / f"step_{manifest.step}.tmp"
        with reported(draft, tensor_bytes(manifest), say) if first else nullcontext():
            folder = store.save(
                root,
                manifest=manifest,
                fragments=fragments,
                trainer_state=trainer_state,
                rank_state=rank_state,
                process_group=self._background,
            )
        size = folder_bytes(folder) if first else 0

        def tidy() -> None:
            if first:
                self._keep(root)

        together(tidy, f"old checkpoints of {root} cannot be removed", root, process_group=self._background)
        if first:
            say(f"saved {folder}: {spell_bytes(size)} in {time.perf_counter() - began:.2f} s")
