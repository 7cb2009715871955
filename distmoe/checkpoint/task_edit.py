"""What adding or removing a task does to task ids and task groups: pure values, no tensor.

Task ids and task group numbers are positions, so a change moves others. :class:`TaskEdit` says where each came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distmoe.errors import ConfigError
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec


@dataclass(frozen=True)
class TaskEdit:
    """A change of the task set.

    Attributes:
        tasks: Afterwards.
        grouping: Afterwards.
        task_origin: New task id -> old one; None: the task is new.
        group_origin: Per routed layer: new task group -> old one.
    """

    tasks: TaskSet
    grouping: TaskGrouping
    task_origin: tuple[int | None, ...]
    group_origin: tuple[tuple[int, ...], ...]

    def num_experts(self, before: int, old: TaskGrouping) -> int:
        """Experts per routed layer afterwards: a task group that lost its last task takes its experts along.

        Args:
            before: Experts per routed layer before.
            old: Task grouping before.

        Raises:
            ConfigError: If layers would keep different numbers of experts.
        """
        if not old.layers:
            return before
        kept = [before // len(was) * len(now) for was, now in zip(old.layers, self.grouping.layers, strict=True)]
        if len(set(kept)) > 1:
            raise ConfigError(
                "without this task, some routed layers would lose a task group with its experts and others would not",
                got=f"{kept} experts in the routed layers",
                expected="the same number of experts in every routed layer",
                remedy="remove a task that shares its task group at every layer, or that is alone at every layer",
            )
        return kept[0]


def adding(tasks: TaskSet, grouping: TaskGrouping, spec: TaskSpec, *, like: int) -> TaskEdit:
    """Appends a task, which joins the task groups of another at every routed layer.

    Args:
        tasks: Before.
        grouping: Before.
        spec: The new task.
        like: Id of the task whose task groups it joins.

    Raises:
        DataError: If a task of that name exists.
    """
    new = len(tasks)
    partitions = [
        [(*task_group, new) if like in task_group else task_group for task_group in partition]
        for partition in grouping.layers
    ]
    return _edit(grouping, TaskSet((*tasks.specs, spec)), (*range(new), None), partitions)


def removing(tasks: TaskSet, grouping: TaskGrouping, task_id: int) -> TaskEdit:
    """Removes a task; later tasks move up, and a task group without tasks disappears.

    Raises:
        ConfigError: If it is the only task.
    """
    if len(tasks) == 1:
        raise ConfigError(
            "the last task of a model cannot be removed",
            got=tasks[0].name,
            expected="two tasks or more",
            remedy="add another task first",
        )
    origin = tuple(task for task in range(len(tasks)) if task != task_id)
    new_id = {old: new for new, old in enumerate(origin)}
    partitions = [
        [members for task_group in partition if (members := tuple(new_id[t] for t in task_group if t != task_id))]
        for partition in grouping.layers
    ]
    return _edit(grouping, TaskSet(tuple(tasks[old] for old in origin)), origin, partitions)


def _edit(
    old: TaskGrouping,
    tasks: TaskSet,
    origin: tuple[int | None, ...],
    partitions: Sequence[Sequence[Sequence[int]]],
) -> TaskEdit:
    grouping = TaskGrouping.from_partitions(len(tasks), partitions)
    group_origin = []
    for layer, partition in enumerate(grouping.layers):
        known = [next(origin[task] for task in members if origin[task] is not None) for members in partition]
        group_origin.append(tuple(old.task_group_of(layer, task) for task in known if task is not None))
    return TaskEdit(tasks, grouping, origin, tuple(group_origin))
