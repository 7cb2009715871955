"""The checkpoints of a run: which are complete, which is newest or best, which may go.

A folder counts if it has a manifest, because that is written last. While a step is saved a second time, its first
checkpoint is called ``step_N.old``, and counts as long as there is no ``step_N``.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from distmoe.checkpoint.manifest import MANIFEST_NAME, Manifest, read_manifest
from distmoe.errors import CheckpointError
from distmoe.log import get_logger

_log = get_logger(__name__)

_STEP = re.compile(r"step_(\d+)(\.old)?")


def by_step(root: Path) -> dict[int, Path]:
    """Complete checkpoints of a run by step, oldest first."""
    found: dict[int, Path] = {}
    for path in sorted(Path(root).glob("step_*")):  # step_5 before step_5.old
        match = _STEP.fullmatch(path.name)
        if match and (path / MANIFEST_NAME).is_file():
            found.setdefault(int(match[1]), path)
    return dict(sorted(found.items()))


def steps(root: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return list(by_step(root).values())


def latest(root: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    found = steps(root)
    return found[-1] if found else None


def best(root: Path) -> Path | None:
    """The checkpoint with the highest score; of equal ones the earliest. None if none was evaluated.

    Only checkpoints of the newest one's grouping count: structural learning may have merged task groups since. One
    whose manifest is damaged does not count: it must not end a run that has weights to save.
    """
    manifests = [(manifest, path) for path in steps(root) if (manifest := _readable(path)) is not None]
    candidates = [
        (manifest.score, path)
        for manifest, path in manifests
        if manifest.score is not None and manifest.grouping == manifests[-1][0].grouping
    ]
    return max(candidates, key=lambda pair: pair[0])[1] if candidates else None


def _readable(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except CheckpointError as error:
        _log.warning("%s is no candidate for the best checkpoint: %s (%s)", folder, error.what, error.got)
        return None


def move_later(root: Path, target: Path, *, after: int) -> list[Path]:
    """Moves complete checkpoints of later steps into another folder; call it on rank 0, before the run goes on.

    The newest goes first: whatever ends this half way, those that are left belong together.

    Returns:
        Where they are now, newest first.
    """
    target.mkdir(parents=True, exist_ok=True)
    later = [path for step, path in by_step(root).items() if step > after]
    return [path.rename(target / path.name) for path in reversed(later)]


def prune(root: Path, *, keep_last: int, keep_best: bool) -> list[Path]:
    """Removes old checkpoints and returns what it removed; call it on rank 0, after a save.

    Args:
        root: The run's ``checkpoints/``.
        keep_last: Newest ones that stay.
        keep_best: Whether the best one stays as well.
    """
    kept = set(steps(root)[-keep_last:])
    if keep_best and (champion := best(root)) is not None:
        kept.add(champion)
    removed = [path for path in steps(root) if path not in kept]
    for path in removed:
        # Without its manifest the folder is no checkpoint any more, whatever happens to the rest.
        (path / MANIFEST_NAME).unlink()
        shutil.rmtree(path)
    return removed


def follow(copies: Path, root: Path) -> None:
    """Removes from another folder the ``step_N`` that a run has no checkpoint of any more; call it on rank 0."""
    kept = {path.name.removesuffix(".old") for path in steps(root)}
    for path in Path(copies).glob("step_*"):
        if path.is_dir() and _STEP.fullmatch(path.name) and path.name not in kept:
            shutil.rmtree(path)


def clean(root: Path) -> None:
    """Removes what killed saves and killed prunes left, and checkpoints that were saved again."""
    complete = set(steps(root))
    for path in Path(root).glob("step_*"):
        ours = _STEP.fullmatch(path.name) or path.name.endswith(".tmp")
        if ours and path.is_dir() and path not in complete:
            _log.info("removing unfinished or replaced checkpoint %s", path)
            shutil.rmtree(path)
