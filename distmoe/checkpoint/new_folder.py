"""A folder that is written under another name beside its place, so that half of it never looks like all of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distmoe.errors import CheckpointError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields the draft ``OUT.draft``, which becomes ``out`` at the end.

    An ``out`` that exists is filled, not replaced: it may be a mounted disk, or the folder that the user stands in.
    """
    out = out.resolve()  # "." has no name that a draft could have
    draft = out.with_name(f"{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    yield draft
    if not out.exists():
        draft.rename(out)
        return
    for entry in draft.iterdir():
        shutil.move(entry, out)
    draft.rmdir()


def refuse_content(out: Path, what: str) -> None:
    """Refuses a target that is neither new nor an empty folder.

    Args:
        out: The target.
        what: What would be written, with its article.

    Raises:
        CheckpointError: If it holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(
            f"{what} would overwrite something",
            got=f"{out} exists and is not empty",
            expected="a new or empty folder",
            remedy="choose another folder, or remove this one",
        )
