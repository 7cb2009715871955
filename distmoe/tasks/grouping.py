"""Who shares what with whom: per routed layer, a partition of the tasks into task groups.

A deeper layer's partition refines a shallower one's, so the task groups form a tree. The value is
immutable, hashable and canonical: equal sharing means equal objects, whatever order it was given in.

Example: tasks 0..3, two routed layers; the first is shared by all, the second by {0, 2} and {1, 3}::

    TaskGrouping.from_partitions(4, [[[0, 1, 2, 3]], [[0, 2], [1, 3]]])
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distmoe.errors import ConfigError

TaskGroup = tuple[int, ...]
Partition = tuple[TaskGroup, ...]


@dataclass(frozen=True)
class TaskGrouping:
    """Per routed layer (shallow to deep), the task groups in tree order.

    Build it with :meth:`from_partitions`, :meth:`one_group`, :meth:`one_per_task` or :meth:`uniform`;
    the constructor expects the canonical form that these produce.
    """

    num_tasks: int
    layers: tuple[Partition, ...]

    @classmethod
    def from_partitions(cls, num_tasks: int, partitions: Iterable[Sequence[Sequence[int]]]) -> TaskGrouping:
        """Validates and canonicalises; ``partitions[l]`` lists the task groups of routed layer ``l``.

        Raises:
            ConfigError: If a task is missing, occurs twice or is out of range, or if a deeper layer joins
                tasks that a shallower one has split.
        """
        layers = [[tuple(sorted(task_group)) for task_group in partition] for partition in partitions]
        for index, partition in enumerate(layers):
            _check_partition(num_tasks, index, partition)
        for index in range(1, len(layers)):
            _check_refines(layers[index - 1], layers[index], index)
        order = _tree_order(num_tasks, layers)
        rank = {task: position for position, task in enumerate(order)}
        canonical = tuple(
            tuple(sorted(partition, key=lambda task_group: min(rank[task] for task in task_group)))
            for partition in layers
        )
        return cls(num_tasks, canonical)

    @classmethod
    def uniform(cls, num_tasks: int, num_layers: int, partition: Sequence[Sequence[int]]) -> TaskGrouping:
        """The same partition at every routed layer."""
        return cls.from_partitions(num_tasks, [partition] * num_layers)

    @classmethod
    def one_group(cls, num_tasks: int, num_layers: int) -> TaskGrouping:
        """All tasks share every routed layer: an ordinary mixture of experts."""
        return cls.uniform(num_tasks, num_layers, [range(num_tasks)])

    @classmethod
    def one_per_task(cls, num_tasks: int, num_layers: int) -> TaskGrouping:
        """No two tasks share a routed layer: where structural learning starts."""
        return cls.uniform(num_tasks, num_layers, [[task] for task in range(num_tasks)])

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def task_order(self) -> tuple[int, ...]:
        """Tasks in tree order: every task group of every layer is a consecutive run of it."""
        return tuple(_tree_order(self.num_tasks, [list(partition) for partition in self.layers]))

    def num_task_groups(self, layer: int) -> int:
        return len(self.layers[layer])

    def task_group_of(self, layer: int, task: int) -> int:
        """Index of the task's group in ``layers[layer]``."""
        return next(i for i, task_group in enumerate(self.layers[layer]) if task in task_group)

    def table(self, layer: int) -> tuple[int, ...]:
        """Task group index of every task at a layer: ``[num_tasks]``."""
        return tuple(self.task_group_of(layer, task) for task in range(self.num_tasks))

    def to_json(self) -> dict[str, object]:
        return {"num_tasks": self.num_tasks, "layers": [[list(g) for g in partition] for partition in self.layers]}

    @classmethod
    def from_json(cls, value: dict) -> TaskGrouping:
        return cls.from_partitions(value["num_tasks"], value["layers"])

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def _check_partition(num_tasks: int, index: int, partition: list[TaskGroup]) -> None:
    seen = sorted(task for task_group in partition for task in task_group)
    if seen != list(range(num_tasks)) or not all(partition):
        raise ConfigError(
            f"routed layer {index}: every task must be in exactly one task group",
            got=[list(task_group) for task_group in partition],
            expected=f"tasks 0..{num_tasks - 1}, each once, no empty task group",
            remedy="correct structure.grouping",
        )


def _check_refines(shallow: list[TaskGroup], deep: list[TaskGroup], index: int) -> None:
    for task_group in deep:
        if not any(set(task_group) <= set(parent) for parent in shallow):
            raise ConfigError(
                f"routed layer {index} joins tasks that layer {index - 1} has split",
                got=f"{list(task_group)} below {[list(parent) for parent in shallow]}",
                expected="each deeper task group inside one shallower task group (a tree)",
                remedy="split the deeper task group, or join the shallower ones",
            )


def _tree_order(num_tasks: int, layers: Sequence[Sequence[TaskGroup]]) -> list[int]:
    """Sorts tasks by the smallest member of their group at each layer, shallow first, then by id."""

    def path(task: int) -> tuple[int, ...]:
        return (*(min(next(g for g in partition if task in g)) for partition in layers), task)

    return sorted(range(num_tasks), key=path)
