"""What one rank is about to do in one all-to-all: for whoever watches or compares exchanges."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.distributed import ProcessGroup

from distmoe.parallel.traffic import Direction


@dataclass(frozen=True)
class ExchangeCall:
    """One exchange as this rank sees it.

    Attributes:
        tag: Layer and kind of message, for example ``layer3/tokens``.
        task_groups: Task groups of the layer that the block hosts.
        direction: Forward or backward pass.
        process_group: The block.
        ranks: World ranks of the block, in its order.
        send_counts: Rows for each of them.
        receive_counts: Rows expected from each of them.
        row_shape: Shape of one row.
        dtype: Of the rows.
    """

    tag: str
    task_groups: tuple[int, ...]
    direction: Direction
    process_group: ProcessGroup
    ranks: tuple[int, ...]
    send_counts: tuple[int, ...]
    receive_counts: tuple[int, ...]
    row_shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        """``all-to-all layer3/tokens backward, task groups 0 2, ranks 4-7``."""
        plural = "" if len(self.task_groups) == 1 else "s"
        hosted = f", task group{plural} {' '.join(map(str, self.task_groups))}" if self.task_groups else ""
        return f"all-to-all {self.tag} {self.direction}{hosted}, ranks {self.ranks[0]}-{self.ranks[-1]}"


class ExchangeObserver(Protocol):
    """Is told of every exchange before it begins, and when it has ended."""

    def exchange(self, call: ExchangeCall) -> AbstractContextManager[None]: ...
