"""The all-to-alls of one routed layer inside its block of ranks.

Shape letters: P ranks of the block, e experts on this rank, S slots of the block, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from distmoe.parallel.all_to_all import all_to_all, exchange_counts
from distmoe.parallel.exchange_call import ExchangeObserver
from distmoe.parallel.traffic import TrafficCounter


@dataclass(frozen=True)
class Splits:
    """How many rows go to, and come from, each rank."""

    sent: tuple[int, ...]
    received: tuple[int, ...]

    def reverse(self) -> Splits:
        return Splits(self.received, self.sent)


@dataclass(frozen=True)
class Exchange:
    """The block's process group and where its traffic is counted.

    Attributes:
        process_group: The block.
        tag: Name of the layer; the kind of message is appended (``layer3/tokens``).
        traffic: Exact bytes and messages.
        task_groups: Task groups that the block hosts, for the observers.
        observers: Who is told of every exchange.
    """

    process_group: ProcessGroup
    tag: str
    traffic: TrafficCounter | None = None
    task_groups: tuple[int, ...] = ()
    observers: tuple[ExchangeObserver, ...] = ()

    def counts(self, counts_PX: Tensor) -> Tensor:
        """Row ``p`` to rank ``p``; row ``p`` of the result came from it."""
        return exchange_counts(
            counts_PX,
            process_group=self.process_group,
            traffic=self.traffic,
            tag=f"{self.tag}/counts",
            task_groups=self.task_groups,
            observers=self.observers,
        )

    def rows(self, rows: Tensor, splits: Splits, kind: str) -> Tensor:
        """Rows to the ranks, differentiable."""
        return all_to_all(
            rows,
            send_counts=splits.sent,
            receive_counts=splits.received,
            process_group=self.process_group,
            traffic=self.traffic,
            tag=f"{self.tag}/{kind}",
            task_groups=self.task_groups,
            observers=self.observers,
        )


@dataclass(frozen=True)
class HostCounts:
    """What the host must know, in one transfer.

    Attributes:
        rows: Splits of (token, expert) rows.
        experts_e: Rows of each expert on this rank.
        items: Splits of de-duplicated tokens; None without de-duplication.
    """

    rows: Splits
    experts_e: tuple[int, ...]
    items: Splits | None


def read_counts(
    sent_S: Tensor, received_Pe: Tensor, items_sent_P: Tensor | None = None, items_received_P: Tensor | None = None
) -> HostCounts:
    """Brings all split sizes of a layer to the host with a single synchronisation."""
    ranks, per_rank = received_Pe.shape
    parts = [sent_S.view(ranks, per_rank).sum(1), received_Pe.sum(1), received_Pe.sum(0)]
    parts += [part for part in (items_sent_P, items_received_P) if part is not None]
    # One tolist of everything: each further one would wait for the device again.
    numbers = iter(torch.cat(parts).tolist())
    sent, received, experts_e, *items = [tuple(islice(numbers, len(part))) for part in parts]
    return HostCounts(Splits(sent, received), experts_e, Splits(*items) if items else None)
