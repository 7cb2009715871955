"""From ``structure.grouping`` (task names) to a :class:`TaskGrouping` (task ids)."""

from __future__ import annotations

from collections.abc import Sequence

from distmoe.errors import ConfigError
from distmoe.structure.config import StructureConfig
from distmoe.tasks import TaskGrouping, TaskSet


def resolve_grouping(config: StructureConfig, tasks: TaskSet, num_layers: int) -> TaskGrouping:
    """Returns the run's grouping.

    Args:
        config: ``one``, ``per_task``, ``family``, one partition, or one partition per routed layer.
        tasks: Turns names into ids.
        num_layers: Number of routed layers.

    Raises:
        ConfigError: If a name is unknown, missing or twice; if partitions do not form a tree; or if their number is
            not that of the routed layers.
    """
    if config.grouping == "one":
        return TaskGrouping.one_group(len(tasks), num_layers)
    if config.grouping == "per_task":
        return TaskGrouping.one_per_task(len(tasks), num_layers)
    if config.grouping == "family":
        return TaskGrouping.uniform(len(tasks), num_layers, _families(tasks))
    partitions = [config.grouping] * num_layers if _is_single(config.grouping) else list(config.grouping)
    if len(partitions) != num_layers:
        raise ConfigError(
            "structure.grouping has another number of layers than the model has routed layers",
            got=f"{len(partitions)} partitions",
            expected=f"{num_layers} partitions (model.moe.layers), or one for all layers",
            remedy="add or remove partitions in structure.grouping, or change model.moe.layers",
        )
    return TaskGrouping.from_partitions(len(tasks), [_to_ids(names, tasks) for names in partitions])  # type: ignore[arg-type]


def tree_lines(grouping: TaskGrouping, tasks: TaskSet, routed_layers: Sequence[int]) -> list[str]:
    """The grouping as an indented text tree, one line per task group; equal consecutive layers share a line."""
    if not grouping.layers:
        return ["dense model: all tasks share every layer"]
    # [first layer, last layer] of each run of equal partitions, shallow to deep
    spans: list[list[int]] = []
    for layer, partition in enumerate(grouping.layers):
        if spans and grouping.layers[spans[-1][0]] == partition:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    lines: list[str] = []

    def walk(depth: int, parent: frozenset[int]) -> None:
        first, last = spans[depth]
        numbers = ", ".join(str(number) for number in routed_layers[first : last + 1])
        for index, task_group in enumerate(grouping.layers[first]):
            if not set(task_group) <= parent:
                continue
            names = ", ".join(tasks[task].name for task in task_group)
            lines.append(f"{'  ' * depth}layer{'s' if last > first else ''} {numbers} g{index}: {names}")
            if depth + 1 < len(spans):
                walk(depth + 1, frozenset(task_group))

    walk(0, frozenset(range(grouping.num_tasks)))
    return lines


def _is_single(grouping: list) -> bool:
    return all(isinstance(name, str) for task_group in grouping for name in task_group)


def _families(tasks: TaskSet) -> list[list[int]]:
    """Task groups by family, in order of first occurrence; a task without a family is alone."""
    families: dict[str, list[int]] = {}
    for task, spec in enumerate(tasks):
        families.setdefault(f"family {spec.family}" if spec.family else f"task {spec.name}", []).append(task)
    return list(families.values())


def _to_ids(partition: list[list[str]], tasks: TaskSet) -> list[list[int]]:
    names = [name for task_group in partition for name in task_group]
    unknown = sorted(set(names) - set(tasks.names))
    missing = [name for name in tasks.names if name not in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    for problem, found in (("names unknown tasks", unknown), ("leaves out tasks", missing), ("repeats tasks", twice)):
        if found:
            raise ConfigError(
                f"structure.grouping {problem}",
                got=", ".join(found),
                expected=f"each of {', '.join(tasks.names)} once",
                remedy="correct structure.grouping, or tasks.names",
            )
    return [[tasks.id_of(name) for name in task_group] for task_group in partition]
