"""What a structural phase is about to change, as a value that all ranks compare by its hash.

A plan holds decisions only: which task groups become one, and the loads that weight them. The similarities behind it
are reported elsewhere: their last digits may differ between world sizes, the plan may not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from distmoe.errors import ConfigError
from distmoe.tasks import TaskGrouping
from distmoe.tasks.grouping import TaskGroup


def tasks_of(task_groups: Iterable[TaskGroup]) -> TaskGroup:
    """All tasks of several disjoint task groups, ascending."""
    return tuple(sorted(task for task_group in task_groups for task in task_group))


@dataclass(frozen=True, order=True)
class Merge:
    """Two or more task groups of one routed layer become one.

    Attributes:
        layer: Index of the routed layer.
        members: The task groups, in order of their smallest task: the order in which their tensors are added.
    """

    layer: int
    members: tuple[TaskGroup, ...]

    def __post_init__(self) -> None:
        assert len(self.members) > 1, "a merge needs two task groups"
        assert self.members == tuple(sorted(self.members)), "members must be in order"

    @property
    def result(self) -> TaskGroup:
        return tasks_of(self.members)

    def to_json(self) -> dict[str, object]:
        return {"layer": self.layer, "members": [list(member) for member in self.members]}

    @classmethod
    def from_json(cls, value: dict) -> Merge:
        return cls(value["layer"], tuple(tuple(member) for member in value["members"]))


@dataclass(frozen=True, order=True)
class Ban:
    """These tasks were tried together at this layer and did not belong together.

    It forbids every task group there that contains them all, so a larger task group cannot bring them back.
    """

    layer: int
    tasks: TaskGroup

    def forbids(self, layer: int, tasks: Iterable[int]) -> bool:
        return layer == self.layer and set(self.tasks) <= set(tasks)

    def to_json(self) -> dict[str, object]:
        return {"layer": self.layer, "tasks": list(self.tasks)}

    @classmethod
    def from_json(cls, value: dict) -> Ban:
        return cls(value["layer"], tuple(value["tasks"]))


@dataclass(frozen=True)
class MergePlan:
    """The merges of one structural phase.

    Attributes:
        version: Number of structure changes before this one; streams of random numbers are keyed by it.
        before: The grouping that the merges change.
        merges: Disjoint, in ascending order.
        loads: What each task weighs in a merge: its tokens per million examples of the mixture.
    """

    version: int
    before: TaskGrouping
    merges: tuple[Merge, ...]
    loads: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.loads) != self.before.num_tasks or min(self.loads, default=1) <= 0:
            raise ConfigError(
                "a merge is weighted by the tokens of each task",
                got=list(self.loads),
                expected=f"{self.before.num_tasks} positive numbers",
                remedy="give one load per task",
            )
        assert self.merges == tuple(sorted(self.merges)), "merges must be in order"

    @property
    def after(self) -> TaskGrouping:
        return apply_merges(self.before, self.merges)

    def member_loads(self, merge: Merge) -> tuple[int, ...]:
        """Load of each member of a merge: the sum over its tasks."""
        return tuple(sum(self.loads[task] for task in member) for member in merge.members)

    def keep(self, accepted: Collection[Merge]) -> MergePlan:
        """The plan without the merges that were rejected."""
        return replace(self, merges=tuple(merge for merge in self.merges if merge in accepted))

    def to_json(self) -> dict[str, object]:
        return {
            "version": self.version,
            "before": self.before.to_json(),
            "merges": [merge.to_json() for merge in self.merges],
            "after": self.after.to_json(),
            "loads": list(self.loads),
        }

    @classmethod
    def from_json(cls, value: dict) -> MergePlan:
        merges = tuple(Merge.from_json(row) for row in value["merges"])
        return cls(value["version"], TaskGrouping.from_json(value["before"]), merges, tuple(value["loads"]))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def apply_merges(grouping: TaskGrouping, merges: Sequence[Merge]) -> TaskGrouping:
    """Joins task groups; deeper layers stay as they are.

    Raises:
        ConfigError: If a merge joins tasks that a shallower layer keeps apart.
    """
    layers = [list(partition) for partition in grouping.layers]
    for merge in merges:
        for member in merge.members:
            layers[merge.layer].remove(member)
        layers[merge.layer].append(merge.result)
    return TaskGrouping.from_partitions(grouping.num_tasks, layers)
