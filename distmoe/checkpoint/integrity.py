"""Whether every file and every chunk of a checkpoint is what its manifest and its index say; reads, never unpickles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from distmoe.checkpoint.manifest import MANIFEST_NAME, Manifest, damage
from distmoe.checkpoint.run_files import SHAPE, TOKENIZER
from distmoe.checkpoint.storage import INDEX_NAME, read_index
from distmoe.checkpoint.store import SHARDS
from distmoe.errors import CheckpointError

PARTS = {"trainable": ("fp32", "exp_avg", "exp_avg_sq"), "frozen": ("frozen",), "buffer": ("buffer",)}
"""What the shards hold of a tensor, by its kind in the manifest."""


@dataclass(frozen=True)
class Integrity:
    """Result of :func:`verify`.

    Attributes:
        problems: One sentence each; empty: the checkpoint is whole.
        files: Files of the manifest that were looked at.
        chunks: Chunks of the index that were looked at.
        contents: Whether checksums were compared, so that a single changed bit would have been found.
    """

    problems: tuple[str, ...]
    files: int
    chunks: int
    contents: bool

    @property
    def intact(self) -> bool:
        return not self.problems


def verify(folder: Path, manifest: Manifest, *, contents: bool) -> Integrity:
    """Compares files with the manifest, and chunks with files and with the tensors that they should make up.

    Shape and tokenizer may stand beside the manifest: whoever copies a checkpoint alone needs them.

    Args:
        folder: ``step_N``.
        manifest: Its manifest.
        contents: Also compare the SHA-256 of every file, which reads everything.
    """
    folder = Path(folder)
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    known = manifest.files.keys() | {MANIFEST_NAME, SHAPE}
    strangers = sorted(name for name in present - known if Path(name).parts[0] != TOKENIZER)
    problems = _wrong_files(folder, manifest, contents=contents)
    problems += [f"{name} is not listed in the manifest" for name in strangers]
    entries: dict[str, Any] = {}
    try:
        entries = read_index(folder / SHARDS)
    except CheckpointError as failure:
        problems.append(f"{failure.what}: {failure.got}")
    else:
        problems += _wrong_chunks(folder, manifest, entries)
    num_chunks = sum(len(entry["chunks"]) for entry in entries.values())
    return Integrity(tuple(problems), len(manifest.files), num_chunks, contents)


def refuse_damage(folder: Path, manifest: Manifest) -> None:
    """Compares the contents of every file and every chunk. Reads the checkpoint once, moments included.

    Files that the manifest does not list are left alone: nobody reads them.

    Raises:
        CheckpointError: If the checkpoint is damaged.
    """
    folder = Path(folder)
    problems = _wrong_files(folder, manifest, contents=True)
    # Without its index, or with a changed one, there is nothing more to compare.
    problems = problems or _wrong_chunks(folder, manifest, read_index(folder / SHARDS))
    if problems:
        raise CheckpointError(
            f"{folder} is damaged",
            got="; ".join(problems[:3]),
            expected="the files that the manifest lists",
            remedy="use another checkpoint of the run",
        )


def _wrong_files(folder: Path, manifest: Manifest, *, contents: bool) -> list[str]:
    found = (damage(folder, name, record, checksum=contents) for name, record in sorted(manifest.files.items()))
    return [problem for problem in found if problem is not None]


def _wrong_chunks(folder: Path, manifest: Manifest, entries: dict[str, Any]) -> list[str]:
    sizes = {path.name: path.stat().st_size for path in (folder / SHARDS).iterdir() if path.name != INDEX_NAME}
    expected = {
        f"{part}/{name}": tuple(record.shape)
        for name, record in manifest.tensors.items()
        for part in PARTS[record.kind]
    }
    problems = [f"{key} is missing in the index" for key in sorted(expected.keys() - entries.keys())]
    problems += [f"{key} is in the index and not in the manifest" for key in sorted(entries.keys() - expected.keys())]
    for key, entry in sorted(entries.items()):
        if key in expected:
            problems += [f"{key}: {text}" for text in _entry_problems(entry, expected[key], sizes)]
    return problems


def _entry_problems(entry: dict[str, Any], shape: Sequence[int], sizes: dict[str, int]) -> list[str]:
    if tuple(entry["size"]) != tuple(shape):
        return [f"shape {entry['size']} in the index, {list(shape)} in the manifest"]
    problems = []
    for chunk in entry["chunks"]:
        end = chunk["start"] + chunk["bytes"]
        if chunk["file"] not in sizes:
            problems.append(f"chunk at {chunk['offset']} is in {chunk['file']}, which is missing")
        elif chunk["start"] < 0 or end > sizes[chunk["file"]]:
            problems.append(f"chunk at {chunk['offset']} ends at byte {end} of {sizes[chunk['file']]}")
    if not shape:  # a single number has no box to compare
        return problems if len(entry["chunks"]) == 1 else [*problems, f"{len(entry['chunks'])} chunks of one element"]
    lows = np.asarray([chunk["offset"] for chunk in entry["chunks"]], dtype=np.int64).reshape(-1, len(shape))
    highs = lows + np.asarray([chunk["size"] for chunk in entry["chunks"]], dtype=np.int64).reshape(lows.shape)
    return problems + _coverage_problems(lows, highs, shape)


def _coverage_problems(lows: Any, highs: Any, shape: Sequence[int]) -> list[str]:
    """Whether boxes ``[low, high)`` fill the tensor, each element once.

    Boxes inside the tensor whose volumes add up to its own leave a gap only if two of them overlap.
    """
    if (lows < 0).any() or (highs > np.asarray(shape, dtype=np.int64)).any():
        return ["a chunk reaches beyond the tensor"]
    covered, volume = int((highs - lows).prod(axis=1).sum()), prod(shape)
    if covered != volume:
        return [f"chunks hold {covered} of {volume} elements"]
    for index in range(1, len(lows)):
        if ((lows[:index] < highs[index]) & (highs[:index] > lows[index])).all(axis=1).any():
            return [f"chunk at {lows[index].tolist()} overlaps another"]
    return []
