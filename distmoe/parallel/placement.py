"""Which ranks host which task groups: a pure function of grouping, mixture weights and world size.

Terms (design section 2): a *block of ranks* is ``ep_size`` consecutive ranks and holds one full copy of the experts
of every task group that it hosts. At each routed layer the blocks are cut into *spans*: sets of blocks that host
exactly the same task groups. Expert ``i`` of a task group lives, inside each block of its span, on rank
``i // (experts / ep_size)`` of the block, so an expert's replicas are the ranks of equal position in the span's blocks.

Hand-worked: 4 ranks, ep_size 1, tasks weighted 2:1:1, one layer of three task groups, partitioned::

    span 0: blocks 0,1 host task group 0 | span 1: block 2 hosts 1 | span 2: block 3 hosts 2
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from distmoe.errors import ParallelError
from distmoe.parallel.apportion import deal, pack, quantize
from distmoe.tasks import TaskGrouping
from distmoe.tasks.grouping import Partition

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

    def span_ranks(self, layer: int, rank: int) -> tuple[int, ...]:
        """Ranks that host the same task groups of a layer as ``rank``, ascending."""
        return tuple(one for block in self.span_of(layer, rank).blocks for one in self.block_ranks(block))

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
    """Returns which ranks host which task groups. Deterministic: equal inputs give equal placements on every machine.

    Partitioned, from the deepest routed layer up:

    1. As many blocks as task groups, or more: blocks are dealt in tree order by weight, at least one each. Fewer
       blocks: consecutive task groups are packed onto one block each, balanced by weight.
    2. A task group of a shallower layer lives on the blocks of its tasks.
    3. Where two task groups of a layer meet on a block, their blocks become one span that hosts both, so that every
       rank has exactly one set of replicas per layer.

    Hence at every layer the ranks of a task group are consecutive, and a deeper task group's ranks lie inside its
    parent's. Without routed layers every rank may train every task.

    Args:
        grouping: Who shares what with whom.
        weights: Mixture weight of each task, in any scale. Blocks follow it, so that partitioned it is positive.
        num_ranks: Ranks of the whole run.
        ep_size: Ranks of a block. Larger: fewer experts in each rank's memory, more exchange; keep it inside a node.
        mode: ``colocated`` or ``partitioned``.

    Raises:
        ParallelError: If ``ep_size`` does not divide ``num_ranks``, or the weights do not fit the tasks.
    """
    _check(grouping, weights, num_ranks=num_ranks, ep_size=ep_size, mode=mode)
    num_blocks = num_ranks // ep_size
    if mode == "partitioned" and grouping.num_layers > 0:
        task_blocks = _blocks_of_tasks(grouping.layers[-1], weights, num_blocks)
    else:
        task_blocks = [range(num_blocks)] * grouping.num_tasks
    layers = tuple(_spans(partition, task_blocks) for partition in grouping.layers)
    if not layers:
        every_task = HostClass(tuple(range(num_ranks)), tuple(range(grouping.num_tasks)))
        return Placement(mode, num_ranks, ep_size, layers, (every_task,))
    hosts = tuple(_host_class(span, grouping.layers[-1], ep_size) for span in layers[-1])
    return Placement(mode, num_ranks, ep_size, layers, hosts)


def _check(grouping: TaskGrouping, weights: Sequence[float], *, num_ranks: int, ep_size: int, mode: str) -> None:
    if mode not in get_args(PlacementMode):
        raise ParallelError(
            "unknown placement",
            got=mode,
            expected=" | ".join(get_args(PlacementMode)),
            remedy="correct parallel.placement",
        )
    if num_ranks < 1 or ep_size < 1 or num_ranks % ep_size:
        raise ParallelError(
            "the ranks cannot be cut into blocks of parallel.ep_size ranks",
            got=f"ep_size {ep_size} with {num_ranks} ranks",
            expected=f"an ep_size that divides {num_ranks}",
            remedy="change parallel.ep_size, or start another number of ranks",
        )
    if len(weights) != grouping.num_tasks:
        raise ParallelError(
            "every task needs one mixture weight",
            got=f"{len(weights)} weights",
            expected=f"{grouping.num_tasks}, one per task",
            remedy="give one weight per task of the run",
        )
    lowest = 0.0 if mode == "colocated" else math.ulp(0.0)  # ranks are dealt by weight: none for a task without any
    if not all(weight >= lowest and math.isfinite(weight) for weight in weights):
        raise ParallelError(
            "a mixture weight does not fit the placement",
            got=list(weights),
            expected="finite numbers, not below 0" if mode == "colocated" else "finite numbers above 0",
            remedy="use parallel.placement=colocated for tasks that are evaluated only, or change data.sampling",
        )


def _blocks_of_tasks(partition: Partition, weights: Sequence[float], num_blocks: int) -> list[range]:
    """Consecutive blocks of each task, from the deepest layer's task groups in tree order."""
    loads = quantize([math.fsum(weights[task] for task in task_group) for task_group in partition])
    if len(partition) <= num_blocks:
        seats = deal(loads, num_blocks)
        blocks = [range(stop - count, stop) for stop, count in zip(accumulate(seats), seats, strict=True)]
    else:
        runs = pack(loads, num_blocks)
        blocks = [range(block, block + 1) for block, run in enumerate(runs) for _ in run]
    of_task = {task: blocks[index] for index, task_group in enumerate(partition) for task in task_group}
    return [of_task[task] for task in range(len(of_task))]


def _spans(partition: Partition, task_blocks: Sequence[range]) -> tuple[Span, ...]:
    """Joins task groups that meet on a block. Tree order makes every set of blocks a run, so one sweep is enough."""
    joined: list[tuple[range, list[int]]] = []
    for index, task_group in enumerate(partition):
        start = min(task_blocks[task].start for task in task_group)
        stop = max(task_blocks[task].stop for task in task_group)
        if joined and start < joined[-1][0].stop:
            before, indices = joined[-1]
            joined[-1] = (range(before.start, max(before.stop, stop)), [*indices, index])
        else:
            joined.append((range(start, stop), [index]))
    return tuple(Span(tuple(blocks), tuple(indices)) for blocks, indices in joined)


def _host_class(span: Span, partition: Partition, ep_size: int) -> HostClass:
    tasks = sorted(task for index in span.task_groups for task in partition[index])
    first, last = span.blocks[0], span.blocks[-1]
    return HostClass(tuple(range(first * ep_size, (last + 1) * ep_size)), tuple(tasks))
