"""Exact bytes and messages of the all-to-alls, from split lists that the host has anyway: no device is asked.

Counted is what a rank *sends to other ranks*; its own rows stay where they are. Sums over ranks give the totals of
``docs/placement.md``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

Direction = Literal["forward", "backward"]


@dataclass(frozen=True)
class Traffic:
    """What this rank sent.

    Attributes:
        calls: Exchanges taken part in, empty ones included.
        messages: Other ranks that got at least one row, over all calls.
        bytes: Bytes sent to other ranks.
    """

    calls: int = 0
    messages: int = 0
    bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.calls + other.calls, self.messages + other.messages, self.bytes + other.bytes)


class TrafficCounter:
    """Adds up what all-to-alls report. One per run; a tag is a free name, for example ``layer3/tokens``."""

    def __init__(self) -> None:
        self._traffic: dict[tuple[str, Direction], Traffic] = defaultdict(Traffic)
        self._bytes_to: Counter[int] = Counter()

    def record(
        self,
        tag: str,
        direction: Direction,
        *,
        ranks: Sequence[int],
        own: int,
        send_counts: Sequence[int],
        row_bytes: int,
    ) -> None:
        """Adds one exchange.

        Args:
            tag: Who exchanges.
            direction: Forward or backward pass.
            ranks: World ranks of the process group, in its order.
            own: Position of this rank in ``ranks``.
            send_counts: Rows for each of them.
            row_bytes: Bytes of one row.
        """
        away = {peer: rows for i, (peer, rows) in enumerate(zip(ranks, send_counts, strict=True)) if i != own and rows}
        self._traffic[tag, direction] += Traffic(1, len(away), sum(away.values()) * row_bytes)
        self._bytes_to.update({peer: rows * row_bytes for peer, rows in away.items()})

    def read(self, tag: str | None = None, direction: Direction | None = None) -> Traffic:
        """Returns the sum over all tags and directions, or over those asked for."""
        chosen = (
            traffic
            for (its_tag, its_direction), traffic in self._traffic.items()
            if tag in (None, its_tag) and direction in (None, its_direction)
        )
        return sum(chosen, Traffic())

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags seen since the last reset, sorted."""
        return tuple(sorted({tag for tag, _ in self._traffic}))

    def bytes_outside(self, ranks: Collection[int]) -> int:
        """Returns the bytes sent to world ranks that are not in ``ranks``.

        With the ranks that host a task group: 0, or tokens have left it.
        """
        return sum(count for peer, count in self._bytes_to.items() if peer not in ranks)

    def reset(self) -> None:
        self._traffic.clear()
        self._bytes_to.clear()
