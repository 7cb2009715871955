"""How far the files of a checkpoint are, from their sizes alone: whoever writes them need not count."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path

import torch

from distmoe.checkpoint.manifest import Manifest

EVERY = 10.0
"""Seconds between two reports; most saves of small models end before the first."""

_PARTS = {"trainable": 3, "frozen": 1, "buffer": 1}


def tensor_bytes(manifest: Manifest) -> int:
    """Bytes of all tensors of a checkpoint, without the files' own overhead: weights, and both moments if trained."""
    return sum(
        prod(record.shape) * getattr(torch, record.dtype).itemsize * _PARTS[record.kind]
        for record in manifest.tensors.values()
    )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, which may change or vanish meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):  # passes over a folder that is gone
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def spell_bytes(count: int) -> str:
    """``1234567`` -> ``1.2 MB``."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.1f} {unit}" if unit != "B" else f"{count} B"


@contextmanager
def reported(folder: Path, expected: int, say: Callable[[str], None], *, every: float = EVERY) -> Iterator[None]:
    """Says every few seconds how much of ``expected`` bytes ``folder`` holds, while the body runs.

    A thread of its own looks: the body may be busy in one call that lasts for minutes.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            share = min(1.0, folder_bytes(folder) / max(1, expected))
            say(f"writing {folder.stem}: {share:.0%} of {spell_bytes(expected)}")

    watcher = threading.Thread(target=watch, name="checkpoint progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
