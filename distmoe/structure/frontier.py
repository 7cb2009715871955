"""Where the tree of task groups may still grow together.

A *frontier* is a set of task groups that share every routed layer above some layer and are apart at that one: the only
place where joining them keeps the tree a tree. Structural learning starts with one frontier, all tasks at the first
routed layer, and moves each joined task group on to the next layer where its tasks are apart.

"Above" follows the data: layer 0 comes first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from distmoe.structure.plan import Ban, Merge, tasks_of
from distmoe.structure.transfer import FEWEST_TASKS
from distmoe.tasks import TaskGrouping
from distmoe.tasks.grouping import TaskGroup


@dataclass(frozen=True)
class Frontier:
    """Task groups of one routed layer that may be joined there.

    Attributes:
        layer: Index of the routed layer.
        members: Two or more of the layer's task groups, in order of their smallest task.
    """

    layer: int
    members: tuple[TaskGroup, ...]

    def is_exhausted(self, bans: Collection[Ban], *, relative: bool = False, with_whole: bool = True) -> bool:
        """Whether nothing is left to join.

        Args:
            bans: Merges that were undone.
            relative: The similarity tells only four members or more apart; of fewer all are joined, or none.
            with_whole: Whether the merge of all members is tried beside what the similarity suggests.
        """
        if relative and len(self.members) < FEWEST_TASKS:
            return not with_whole or self._is_banned(self.members, bans)
        return all(self._is_banned(pair, bans) for pair in combinations(self.members, 2))

    def _is_banned(self, members: Iterable[TaskGroup], bans: Collection[Ban]) -> bool:
        tasks = tasks_of(members)
        return any(ban.forbids(self.layer, tasks) for ban in bans)

    def to_json(self) -> dict[str, object]:
        return {"layer": self.layer, "members": [list(member) for member in self.members]}

    @classmethod
    def from_json(cls, value: dict) -> Frontier:
        return cls(value["layer"], tuple(tuple(member) for member in value["members"]))


def start(grouping: TaskGrouping) -> tuple[Frontier, ...]:
    """The frontier of a fresh run: all task groups of the first routed layer where there are several; else nothing."""
    return descend(grouping, range(grouping.num_tasks), 0)


def descend(grouping: TaskGrouping, tasks: Iterable[int], layer: int) -> tuple[Frontier, ...]:
    """The frontier of tasks that share all layers above ``layer``: at the first layer from there where they are apart.

    Returns:
        One frontier, or none if the tasks share all layers to the end.
    """
    wanted = frozenset(tasks)
    for index in range(layer, grouping.num_layers):
        members = sorted(task_group for task_group in grouping.layers[index] if wanted.issuperset(task_group))
        if len(members) > 1:
            return (Frontier(index, tuple(members)),)
    return ()


def advance(grouping: TaskGrouping, frontiers: Sequence[Frontier], accepted: Sequence[Merge]) -> tuple[Frontier, ...]:
    """The frontiers after a structural phase.

    A task group that was joined moves on to deeper layers. The other members stay together where they are, as
    candidates of the next phase; one that is left alone never merges at this layer again, and moves on if it has
    several tasks.

    Args:
        grouping: After the accepted merges.
        frontiers: Before them.
        accepted: The merges that were kept, each inside one of the frontiers.
    """
    following: list[Frontier] = []
    for frontier in frontiers:
        merges = [merge for merge in accepted if merge.layer == frontier.layer]
        joined = [merge for merge in merges if set(merge.members) <= set(frontier.members)]
        gone = {member for merge in joined for member in merge.members}
        rest = tuple(member for member in frontier.members if member not in gone)
        if len(rest) > 1:
            following.append(Frontier(frontier.layer, rest))
        moving = [merge.result for merge in joined] + (list(rest) if len(rest) == 1 else [])
        for task_group in moving:
            following.extend(descend(grouping, task_group, frontier.layer + 1))
    return tuple(sorted(following, key=lambda frontier: (frontier.layer, frontier.members)))


def is_finished(
    frontiers: Sequence[Frontier], bans: Collection[Ban] = (), *, relative: bool = False, with_whole: bool = True
) -> bool:
    """Stop rule: nothing is left that may be joined; arguments as of :meth:`Frontier.is_exhausted`."""
    return all(frontier.is_exhausted(bans, relative=relative, with_whole=with_whole) for frontier in frontiers)
