"""A Hugging Face folder that appears under its name when it is complete, and never replaces anything but an export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distmoe.checkpoint.hf_folder import CONFIG
from distmoe.checkpoint.new_folder import new_folder
from distmoe.errors import CheckpointError

VERSION_KEY = "distmoe_version"
"""Key of ``config.json`` by which an export is recognised."""


@contextmanager
def new_export(out: Path) -> Iterator[Path]:
    """Yields a draft folder that becomes ``out`` at the end; an older export in ``out`` is replaced.

    Raises:
        CheckpointError: If ``out`` holds something that is not an export.
    """
    check_target(out)
    with new_folder(out) as draft:
        yield draft
        for entry in out.iterdir() if out.exists() else ():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def check_target(out: Path) -> None:
    """Refuses a target that an export must not replace.

    Raises:
        CheckpointError: If ``out`` is a file, or a folder with something that is not an export.
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


def _is_export(folder: Path) -> bool:
    try:
        return VERSION_KEY in json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
