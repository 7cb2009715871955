"""A Hugging Face folder that appears under its name when it is complete, and never replaces anything but an export."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distmoe.checkpoint.hf_folder import CONFIG, TOKENIZER_FILES, WEIGHTS
from distmoe.checkpoint.new_folder import beside, new_folder
from distmoe.errors import CheckpointError

CARD = "README.md"
VERSION_KEY = "distmoe_version"
"""Key of ``config.json`` by which an export is recognised."""


WRITTEN = frozenset({CONFIG, WEIGHTS, CARD, *TOKENIZER_FILES})
"""What an export consists of, besides its code ``*_distmoe*.py``."""


@contextmanager
def new_export(out: Path) -> Iterator[Path]:
    """Yields a draft folder that becomes ``out`` at the end; an older export in ``out`` is replaced.

    The older one is moved away, and removed when the new one is in its place.

    Raises:
        CheckpointError: If ``out`` holds something that is not an export.
    """
    check_target(out)
    out = out.resolve()
    old = beside(out, "old")
    with new_folder(out) as draft:
        yield draft
        check_target(out)  # again: what the user has put there meanwhile is not removed
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)  # of a killed process
            _set_aside(out, old)
    shutil.rmtree(old, ignore_errors=True)


def _set_aside(out: Path, old: Path) -> None:
    """Moves a folder away; one that the user stands in, or a mounted disk, is emptied instead."""
    if out != Path.cwd() and out not in Path.cwd().parents and not os.path.ismount(out):
        out.rename(old)
        return
    for entry in out.iterdir():
        if entry.name != CONFIG:  # says what the folder is until the new one is there
            entry.unlink()


def check_target(out: Path) -> None:
    """Refuses a target that an export must not replace.

    Raises:
        CheckpointError: If ``out`` is a file, or a folder with something that is not an export, or with an export and
            files that none has.
    """
    if out.exists() and not out.is_dir():
        raise CheckpointError("the export cannot be written", got=f"{out} is a file", expected="a new folder",
                              remedy="choose another folder")  # fmt: skip
    if out.is_dir() and any(out.iterdir()) and not _is_export(out):
        raise CheckpointError(
            "the export would overwrite a folder that is not an export",
            got=f"{out} with {sum(1 for _ in out.iterdir())} entries",
            expected="a new or empty folder, or an older export",
            remedy="choose another folder",
        )
    strangers = sorted(entry.name for entry in out.iterdir() if not _is_written(entry)) if out.is_dir() else []
    if strangers:
        raise CheckpointError(
            "the export would remove files that no export has",
            got=f"{out} with {', '.join(strangers[:5])}" + (f" and {len(strangers) - 5} more" * (len(strangers) > 5)),
            expected="a new or empty folder, or an older export as it was written",
            remedy="move these files away, or choose another folder",
        )


def _is_written(entry: Path) -> bool:
    is_code = "_distmoe" in entry.name and entry.suffix == ".py"
    return entry.is_file() and (entry.name in WRITTEN or is_code)


def _is_export(folder: Path) -> bool:
    try:
        return VERSION_KEY in json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
