"""Which ranks can run which members of a frontier."""

from __future__ import annotations

from dataclasses import dataclass

from distmoe.parallel.placement import Placement
from distmoe.structure.frontier import Frontier
from distmoe.tasks import TaskGrouping


@dataclass(frozen=True)
class Hosting:
    """The hosts of a frontier's members.

    Attributes:
        hosts: Per member, the ranks that hold its experts, ascending. Ranks of one block hold the same members.
        num_ranks: Of the run.
    """

    hosts: tuple[tuple[int, ...], ...]
    num_ranks: int

    @classmethod
    def of(cls, frontier: Frontier, grouping: TaskGrouping, placement: Placement) -> Hosting:
        partition = grouping.layers[frontier.layer]
        hosts = []
        for member in frontier.members:
            task_group = partition.index(member)
            span = next(span for span in placement.layers[frontier.layer] if task_group in span.task_groups)
            hosts.append(placement.span_ranks(frontier.layer, placement.block_ranks(span.blocks[0])[0]))
        return cls(tuple(hosts), placement.num_ranks)

    @property
    def is_everywhere(self) -> bool:
        """Whether every rank hosts every member."""
        return all(len(ranks) == self.num_ranks for ranks in self.hosts)

    def members_of(self, rank: int) -> tuple[int, ...]:
        """The members, by their place in the frontier, that a rank hosts."""
        return tuple(member for member, ranks in enumerate(self.hosts) if rank in ranks)
