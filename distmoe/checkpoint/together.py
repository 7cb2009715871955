"""Doing something on every rank so that all of them succeed or all of them raise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

from distmoe.errors import CheckpointError, DistmoeError

T = TypeVar("T")


def rank_of_process() -> int:
    """Rank in the world; 0 without torch.distributed."""
    return dist.get_rank() if dist.is_initialized() else 0


def number_of_ranks() -> int:
    """Ranks of the world; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_initialized() else 1


def together(
    function: Callable[[], T], what: str | None, place: Path, *, process_group: ProcessGroup | None = None
) -> list[T]:
    """Runs a function on every rank and gathers its values; raises on all ranks if it failed on any.

    Without it, one full disk would leave the other ranks waiting at the next collective.

    Args:
        function: May differ between ranks; runs no collective of the same process group.
        what: First line of the error; None: that ``place`` cannot be read.
        place: Whose disk the error's remedy names.
        process_group: Over all ranks; None: the world's. Collectives of a background thread need one of their own.
    """
    value: T | None = None
    failure: Exception | None = None
    try:
        value = function()
    except Exception as error:
        failure = error
    if failure is not None and not isinstance(failure, DistmoeError):
        failure = CheckpointError(
            what or f"{place} cannot be read",
            got=f"rank {rank_of_process()}: {type(failure).__name__}: {failure}",
            expected=f"access to {place} and room on its disk",
            remedy="correct this and start again with --resume auto; the last complete checkpoint is intact",
        )
    gathered: list[Any] = [(value, failure)]
    if number_of_ranks() > 1:
        gathered = [None] * number_of_ranks()
        parts = None
        if isinstance(failure, DistmoeError):
            parts = (failure.what, str(failure.got), str(failure.expected), failure.remedy)
        dist.all_gather_object(gathered, (value, parts), group=process_group)
        failed = next((parts for _, parts in gathered if parts is not None), None)
        if failed is not None and failure is None:
            what_text, got, expected, remedy = failed
            failure = CheckpointError(what_text, got=got, expected=expected, remedy=remedy)
    if failure is not None:
        raise failure
    return [value for value, _ in gathered]
