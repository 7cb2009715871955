"""All process groups of a run, made here and nowhere else: on all ranks, in one order, one per set of ranks.

Two kinds stay apart (design section 6). The *all-to-all process group* of a routed layer is a block of ranks and
carries tokens. A *replica class* says where the copies of an expert live, hence over which ranks its gradient is summed
and its optimizer state is cut; layers whose blocks are cut into the same spans share one.

Drawn: 4 ranks, ep_size 1, layer 0 shared by all tasks, layer 1 cut into spans of 2, 1 and 1 blocks::

    class            layers  expert-data-parallel          expert-parallel
    ep_size_1        (0,)    {0 1 2 3}                     {0} {1} {2} {3}
    ep_size_1_2-1-1  (1,)    {0 1} {2} {3}                 {0} {1} {2} {3}    not uniform

    two spans of two blocks each:
    ep_size_1_2-2    (1,)    {0 1} {2 3}                   {0 2} {1 3}        uniform: 2 x 2 = 4 ranks

With tensor parallelism (:class:`~distmoe.parallel.rank_grid.RankGrid`) the ranks of placements and drawings are data
ranks, and every process group above exists once per tensor rank: experts are copies on tensor neighbours, and their
tokens and gradients never cross to another tensor rank. Here, in a :class:`ReplicaClass` and to DeepSpeed, ranks are
those of the run.

Names are for DeepSpeed, which reads the third part as a number, takes the largest, and then wants ``ep_size_<largest>``
to exist; hence :attr:`ProcessGroups.alias`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroup

from distmoe.errors import ParallelError
from distmoe.parallel.exchange_call import ExchangeObserver
from distmoe.parallel.megatron import end_parallel_state, start_parallel_state
from distmoe.parallel.placement import Placement
from distmoe.parallel.rank_grid import RankGrid
from distmoe.parallel.replicas import Layout, layouts_of, one_span
from distmoe.tasks import TaskGrouping

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class LayerHosting:
    """What this rank holds of one routed layer.

    Attributes:
        task_groups: Task groups whose experts it holds, ascending.
        ep_rank: Its position in its block: which slice of each task group's experts.
        ep_size: Ranks of the block.
        process_group: The block, for the all-to-all; None when it is a single rank and nothing travels.
        observers: Who is told of the layer's exchanges.
    """

    task_groups: tuple[int, ...]
    ep_rank: int
    ep_size: int
    process_group: ProcessGroup | None
    observers: tuple[ExchangeObserver, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class ReplicaClass:
    """What DeepSpeed must know about the experts of some layers, seen from this rank.

    Attributes:
        name: ``ep_size_<n>``, or ``ep_size_<n>_<blocks of each span>``; the same names on all ranks.
        layers: Routed layers that are laid out so.
        ep_ranks: With ``uniform``, one rank of each span and position: between them they hold every expert once.
            Otherwise the own block.
        edp_ranks: Ranks with a copy of this rank's experts.
        ep_group: Process group of ``ep_ranks``; None without torch.distributed.
        edp_group: Process group of ``edp_ranks``; None without torch.distributed.
        uniform: Whether ``ep_ranks`` x ``edp_ranks`` covers all data ranks, which ZeRO-3 and ``BF16_Optimizer`` need
            for their gradient norm. False when spans have different numbers of blocks; ZeRO-1/2 sum the norm over all
            ranks and never read ``ep_group``.
    """

    name: str
    layers: tuple[int, ...]
    ep_ranks: Ranks
    edp_ranks: Ranks
    ep_group: ProcessGroup | None
    edp_group: ProcessGroup | None
    uniform: bool


@dataclass(frozen=True)
class ProcessGroups:
    """Everything about ranks that model and engine need.

    Attributes:
        hosting: Per routed layer.
        replica_classes: Sorted by name; same names and order on all ranks.
        alias: The class called plainly ``ep_size_<n>`` that DeepSpeed expects to exist; one of ``replica_classes``, or
            an extra one without layers. None without routed layers.
        grid: The ranks as data x tensor.
        data: All data ranks of this tensor rank, over which batches are dealt; None without torch.distributed.
        tensor: The tensor ranks of this data rank; None where there is one.
        parallel_state: megatron-core's, which made ``data`` and ``tensor``; None where there is one tensor rank.
    """

    hosting: tuple[LayerHosting, ...]
    replica_classes: tuple[ReplicaClass, ...]
    alias: ReplicaClass | None
    grid: RankGrid = field(default_factory=RankGrid)
    data: ProcessGroup | None = None
    tensor: ProcessGroup | None = None
    parallel_state: Any = None
    _created: list[ProcessGroup] = field(default_factory=list, repr=False, compare=False)

    def class_of(self, layer: int) -> ReplicaClass:
        """The replica class of a routed layer."""
        return next(replica_class for replica_class in self.replica_classes if layer in replica_class.layers)

    def destroy(self) -> None:
        """Ends the process groups made for this value, in the order of their creation; a second call does nothing.

        Call it on all ranks, when no collective is under way. The world's process group stays.
        """
        while self._created:
            dist.destroy_process_group(self._created.pop(0))
        if self.parallel_state is not None:
            end_parallel_state()


def create(
    placement: Placement,
    *,
    tensor: int = 1,
    timeout: timedelta | None = None,
    observers: tuple[ExchangeObserver, ...] = (),
) -> ProcessGroups:
    """Makes the process groups of a placement; a collective over the world.

    Args:
        placement: Of the data ranks; equal on all ranks.
        tensor: Tensor ranks per data rank; above 1 it needs megatron-core.
        timeout: Limit of a collective. None: torch's default (30 minutes for gloo, 10 for NCCL), which is not the
            world's.
        observers: Who is told of every all-to-all of routed layers; as many on every rank.

    Raises:
        ParallelError: If torch.distributed is not initialised or has another number of ranks than the placement.
        ConfigError: If ``tensor`` is above 1 and megatron-core is not installed.
    """
    world_size = dist.get_world_size() if dist.is_initialized() else None
    if world_size != placement.num_ranks * tensor:
        raise ParallelError(
            "the placement is for another number of ranks than the run",
            got="torch.distributed is not initialised" if world_size is None else f"{world_size} ranks",
            expected=f"{placement.num_ranks * tensor} ranks",
            remedy="initialise torch.distributed first, and place for its world size",
        )
    grid = RankGrid(dist.get_rank(), world_size, tensor)
    state = start_parallel_state(tensor, timeout) if tensor > 1 else None
    data = dist.group.WORLD if state is None else state.get_data_parallel_group()
    layouts, plain = layouts_of(placement), one_span(placement)
    wanted = {ranks for layout in {*layouts, plain} for ranks in layout.rank_sets()} if layouts else set()
    own = _new_groups(wanted, grid, data, timeout)
    classes = {layout: _replica_class(layout, layers, grid, own) for layout, layers in layouts.items()}
    alias = classes.get(plain) or _replica_class(plain, (), grid, own) if layouts else None
    return ProcessGroups(
        hosting=tuple(
            _hosting(placement, layer, grid.data_rank, own, observers) for layer in range(len(placement.layers))
        ),
        replica_classes=tuple(sorted(classes.values(), key=lambda replica_class: replica_class.name)),
        alias=alias,
        grid=grid,
        data=data,
        tensor=None if state is None else state.get_tensor_model_parallel_group(),
        parallel_state=state,
        _created=[process_group for process_group in own.values() if process_group is not data],
    )


def create_background(*, timeout: timedelta | None = None) -> ProcessGroup:
    """Makes a gloo process group over the world for a thread beside training; a collective over the world.

    Two threads that share a process group would meet in each other's collectives. On gloo, what the thread says does
    not wait for the device, and not for the collectives of training queued there.

    Args:
        timeout: Limit of a collective. None: torch's default for gloo, 30 minutes.
    """
    return dist.new_group(backend="gloo", timeout=timeout, group_desc="distmoe background")


def single_process(grouping: TaskGrouping) -> ProcessGroups:
    """Returns what :func:`create` gives for one rank, without torch.distributed: every process group is None."""
    hosting = tuple(
        LayerHosting(tuple(range(grouping.num_task_groups(layer))), 0, 1, None) for layer in range(grouping.num_layers)
    )
    if not hosting:
        return ProcessGroups((), (), None)
    only = ReplicaClass("ep_size_1", tuple(range(len(hosting))), (0,), (0,), None, None, uniform=True)
    return ProcessGroups(hosting, (only,), only)


def _new_groups(
    wanted: Iterable[Ranks], grid: RankGrid, data: ProcessGroup | None, timeout: timedelta | None
) -> dict[Ranks, ProcessGroup]:
    """Makes a process group per set of data ranks and tensor rank; returns this rank's by data ranks, as created."""
    everyone = tuple(range(grid.num_data_ranks))
    own: dict[Ranks, ProcessGroup] = {}
    for ranks in sorted(wanted):
        if ranks == everyone:
            # A second communicator over the same ranks would cost memory on every device and buy nothing.
            assert data is not None
            own[ranks] = data
            continue
        for tensor_rank in range(grid.tensor):
            members = replace(grid, rank=tensor_rank).world_ranks(ranks)
            # A collective of the world: members or not, all ranks call it.
            process_group = dist.new_group(list(members), timeout=timeout, group_desc=f"distmoe {_spell(members)}")
            if grid.rank in members:
                own[ranks] = process_group
    return own


def _spell(ranks: Ranks) -> str:
    """Short name for logs of collectives: ``0 1 2 3``, or ``0 .. 252, 64 ranks``."""
    return " ".join(map(str, ranks)) if len(ranks) <= 8 else f"{ranks[0]} .. {ranks[-1]}, {len(ranks)} ranks"


def _hosting(
    placement: Placement,
    layer: int,
    rank: int,
    own: dict[Ranks, ProcessGroup],
    observers: tuple[ExchangeObserver, ...],
) -> LayerHosting:
    return LayerHosting(
        task_groups=placement.hosted_task_groups(layer, rank),
        ep_rank=rank % placement.ep_size,
        ep_size=placement.ep_size,
        process_group=own[placement.block_ranks(placement.block_of(rank))] if placement.ep_size > 1 else None,
        observers=observers,
    )


def _replica_class(
    layout: Layout, layers: tuple[int, ...], grid: RankGrid, own: dict[Ranks, ProcessGroup]
) -> ReplicaClass:
    ep_ranks, edp_ranks = layout.ep_ranks(grid.data_rank), layout.edp_ranks(grid.data_rank)
    return ReplicaClass(
        name=layout.name,
        layers=layers,
        ep_ranks=grid.world_ranks(ep_ranks),
        edp_ranks=grid.world_ranks(edp_ranks),
        ep_group=own[ep_ranks],
        edp_group=own[edp_ranks],
        uniform=layout.uniform,
    )
