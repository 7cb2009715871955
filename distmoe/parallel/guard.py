"""The collective guard: a rank that goes its own way becomes a named error before it does harm.

Without it, a rank that expects more rows than it is sent reads old memory and nobody notices; other mismatches end in
a time-out or an abort. Two parts, both slow, both for finding a mistake (``parallel.guard=true``):

* The *sequence of collectives* of every process group is compared by torch (debug level ``DETAIL``), DeepSpeed's
  collectives included. :func:`explain` turns its finding into an error in four parts.
* The *split tables* of all-to-alls, which torch does not compare, are exchanged and compared here before each one,
  with layer, kind of message, direction, row shape and dtype.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from distmoe.errors import ParallelError
from distmoe.parallel.exchange_call import ExchangeCall

_REMEDY = (
    "all ranks must make the same exchanges in the same order, with receive counts that come from exchange_counts; "
    "report this with the message: it is a mistake of the program, or ranks run different versions of it"
)


def arm() -> None:
    """Lets torch compare the sequence of collectives; call it before torch.distributed is initialised."""
    dist.set_debug_level(dist.DebugLevel.DETAIL)


@dataclass(frozen=True)
class Intent:
    """What a rank is about to do, in plain values that travel.

    Attributes:
        number: How many exchanges this rank has made in this process group.
        name: Tag and direction.
        row: Shape and dtype of a row.
        send_counts: Rows for each rank.
        receive_counts: Rows expected from each rank.
    """

    number: int
    name: str
    row: str
    send_counts: tuple[int, ...]
    receive_counts: tuple[int, ...]


class CollectiveGuard:
    """An observer of exchanges that compares them over their process group first. Collective."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, ...], int] = {}

    @contextmanager
    def exchange(self, call: ExchangeCall) -> Iterator[None]:
        """Compares, then lets the exchange go on.

        Raises:
            ParallelError: On all ranks of the process group, if they do not fit each other.
        """
        number = self._numbers.get(call.ranks, 0)
        self._numbers[call.ranks] = number + 1
        row = f"{list(call.row_shape)} {call.dtype}"
        own = Intent(number, f"{call.tag} {call.direction}", row, call.send_counts, call.receive_counts)
        intents: list[Any] = [None] * len(call.ranks)
        dist.all_gather_object(intents, own, group=call.process_group)
        compare(intents, call)
        yield


def compare(intents: Sequence[Intent], call: ExchangeCall) -> None:
    """Raises if the ranks of a process group are about to make exchanges that do not fit each other. Pure.

    Args:
        intents: By position in the process group.
        call: This rank's, for names.

    Raises:
        ParallelError: For the first difference.
    """
    first = intents[0]
    for rank, intent in zip(call.ranks, intents, strict=True):
        for what, one, other in (
            ("exchanges", f"{first.name}, exchange {first.number}", f"{intent.name}, exchange {intent.number}"),
            ("rows", f"{first.name}: rows {first.row}", f"{intent.name}: rows {intent.row}"),
        ):
            if one != other:
                raise ParallelError(
                    f"ranks {call.ranks[0]} and {rank} are about to make different {what}",
                    got=f"rank {call.ranks[0]}: {one}; rank {rank}: {other}",
                    expected=f"the same on ranks {call.ranks[0]}-{call.ranks[-1]}, here {call}",
                    remedy=_REMEDY,
                )
    for sender, (from_rank, sent) in enumerate(zip(call.ranks, intents, strict=True)):
        for receiver, (to_rank, received) in enumerate(zip(call.ranks, intents, strict=True)):
            rows, wanted = sent.send_counts[receiver], received.receive_counts[sender]
            if rows != wanted:
                raise ParallelError(
                    f"the split tables of ranks {from_rank} and {to_rank} contradict each other",
                    got=f"rank {from_rank} sends {rows} rows to rank {to_rank}, which expects {wanted}, in {call}",
                    expected="as many rows as are sent: a rank that expects more would read old memory",
                    remedy=_REMEDY,
                )


def explain(error: BaseException) -> ParallelError | None:
    """torch's finding that ranks run different collectives, as an error in four parts; None: something else."""
    found = re.search(r"Detected mismatch between collectives on ranks?\.?\s*(.*)", str(error), flags=re.DOTALL)
    if found is None:
        return None
    return ParallelError(
        "the ranks run different collectives",
        got=" ".join(found[1].split())[:600],
        expected="the same sequence of collectives on every rank of a process group",
        remedy=_REMEDY,
    )
