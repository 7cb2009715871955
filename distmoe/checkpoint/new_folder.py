"""A folder that is written under another name beside its place, so that half of it never looks like all of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distmoe.checkpoint.hf_folder import CONFIG
from distmoe.errors import CheckpointError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields the draft ``.OUT.distmoe-draft``, which becomes ``out`` at the end, or vanishes if the body raises.

    An ``out`` that exists is filled, not replaced: it may be a mounted disk, or the folder that the user stands in.
    """
    out = out.resolve()  # "." has no name that a draft could have
    draft = beside(out, "draft")
    shutil.rmtree(draft, ignore_errors=True)  # of a killed process
    draft.mkdir(parents=True)
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if not out.exists():
        draft.rename(out)
        return
    # config.json, by which an export is known, last: a killed process leaves an older one, which may be replaced.
    for entry in sorted(draft.iterdir(), key=lambda entry: entry.name == CONFIG):
        shutil.move(entry, out / entry.name)
    draft.rmdir()


def beside(out: Path, what: str) -> Path:
    """A path beside ``out`` that nobody else would use."""
    return out.with_name(f".{out.name}.distmoe-{what}")


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
