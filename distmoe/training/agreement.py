"""Makes all ranks fail together, with the same message.

A user error on one rank would leave the others waiting in a collective. :class:`Agreement` turns every place where
ranks meet during set-up into an exchange of "error or none": a rank that failed takes part in the exchange that the
others are waiting in, and all raise the error of the lowest failing rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from distmoe import errors
from distmoe.errors import DistmoeError

T = TypeVar("T")
_Wire = tuple[str, str, str, str, str]


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class Agreement:
    """Collective error handling; every method is a collective call on all ranks, in the same order."""

    def __init__(self) -> None:
        self._agreed: DistmoeError | None = None  # the error that all ranks know of already

    def run(self, function: Callable[[], T]) -> T:
        """Calls ``function`` on every rank; if any rank raised a :class:`DistmoeError`, all ranks raise it.

        The function may call :meth:`barrier` itself, the same number of times on every rank that succeeds.
        """
        try:
            result = function()
        except DistmoeError as error:
            if error is not self._agreed:
                self._exchange(error)
            raise
        self._exchange(None)
        return result

    def barrier(self) -> None:
        """Waits for all ranks, or raises the error that one of them has met."""
        self._exchange(None)

    def from_rank_0(self, function: Callable[[], T]) -> T:
        """Calls ``function`` on rank 0 only and hands its (picklable) result to all ranks."""
        if not is_distributed():
            return function()
        result = self.run(lambda: function() if dist.get_rank() == 0 else None)
        box: list[Any] = [result]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _exchange(self, error: DistmoeError | None) -> None:
        if not is_distributed():
            if error is not None:
                raise error
            return
        reports: list[_Wire | None] = [None] * dist.get_world_size()
        dist.all_gather_object(reports, None if error is None else _pack(error))
        for rank, report in enumerate(reports):
            if report is not None:
                self._agreed = error if error is not None and rank == dist.get_rank() else _unpack(report)
                raise self._agreed


def _pack(error: DistmoeError) -> _Wire:
    # Values such as tensors or paths need not be picklable; their text is all that the message shows.
    return type(error).__name__, error.what, str(error.got), str(error.expected), error.remedy


def _unpack(wire: _Wire) -> DistmoeError:
    name, what, got, expected, remedy = wire
    kind = getattr(errors, name, DistmoeError)
    return kind(what, got=got, expected=expected, remedy=remedy)
