"""Which ranks host which task groups: a pure function of grouping, mixture weights and world size.

Terms (design section 2): a *block of ranks* is ``ep_size`` consecutive ranks and holds one full copy of the experts
of every task group that it hosts. At each routed layer the blocks are cut into *spans*: sets of blocks that host
exactly the same task groups. Expert ``i`` of a task group lives, inside each block of its span, on rank
``i // (experts / ep_size)`` of the block, so an expert's replicas are the ranks of equal position in the span's blocks.

Hand-worked: 4 ranks, ep_size 1, tasks weighted 2:1:1, one layer of three task groups, partitioned::

    span 0: blocks 0,1 host task group 0 | span 1: block 2 hosts 1 | span 2: block 3 hosts 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distmoe.tasks import TaskGrouping

PlacementMode = Literal["colocated", "partitioned"]


@dataclass(frozen=True)
class Span:
    """Consecutive blocks that host the same task groups at one layer."""

    blocks: tuple[int, ...]
    task_groups: tuple[int, ...]


@dataclass(frozen=True)
class HostClass:
    """Ranks that may train the same tasks. Host classes are disjoint and cover all ranks and all tasks."""

    ranks: tuple[int, ...]
    tasks: tuple[int, ...]


@dataclass(frozen=True)
class Placement:
    """The answer of :func:`place`. ``layers[l]`` are the spans of routed layer ``l``, in block order."""

    mode: PlacementMode
    num_ranks: int
    ep_size: int
    layers: tuple[tuple[Span, ...], ...]
    host_classes: tuple[HostClass, ...]

    @property
    def num_blocks(self) -> int:
        return self.num_ranks // self.ep_size

    def block_of(self, rank: int) -> int:
        return rank // self.ep_size

    def block_ranks(self, block: int) -> tuple[int, ...]:
        return tuple(range(block * self.ep_size, (block + 1) * self.ep_size))

    def span_of(self, layer: int, rank: int) -> Span:
        block = self.block_of(rank)
        return next(span for span in self.layers[layer] if block in span.blocks)

    def replica_ranks(self, layer: int, rank: int) -> tuple[int, ...]:
        """Ranks that hold a copy of ``rank``'s experts of a layer: its expert-data-parallel ranks, ascending."""
        return tuple(block * self.ep_size + rank % self.ep_size for block in self.span_of(layer, rank).blocks)

    def hosted_task_groups(self, layer: int, rank: int) -> tuple[int, ...]:
        return self.span_of(layer, rank).task_groups

    def hosted_tasks(self, rank: int) -> tuple[int, ...]:
        """Tasks whose examples this rank may train or evaluate."""
        return next(host.tasks for host in self.host_classes if rank in host.ranks)


def place(
    grouping: TaskGrouping,
    weights: Sequence[float],
    *,
    num_ranks: int,
    ep_size: int,
    mode: PlacementMode,
) -> Placement:
    raise NotImplementedError
