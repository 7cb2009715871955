"""Where every tensor of the model after a structural phase comes from in the model before it.

A task group's index at a layer is its place in tree order, so a merge may shift the index of task groups that it does
not touch, at other layers too. State is therefore carried by *name through the tasks that own it*, and nothing may be
left over: a tensor of the new model that is neither carried nor merged, or an old one that nobody takes, is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Literal

from distmoe.errors import CheckpointError
from distmoe.tasks import TaskGrouping

PoolMode = Literal["merge", "pool"]
LayerSources = tuple[tuple[int, ...], ...]
"""Per task group of the new layer, the task groups of the old one that it is made of, smallest task first."""


def task_group_sources(before: TaskGrouping, after: TaskGrouping) -> tuple[LayerSources, ...]:
    """Returns, per routed layer and new task group, the old task groups inside it: one if it is carried as it is.

    Raises:
        CheckpointError: If the new grouping is not made by joining task groups of the old one.
    """
    shapes = [(grouping.num_tasks, grouping.num_layers) for grouping in (before, after)]
    if shapes[0] != shapes[1]:
        raise _not_joined(before, after)
    layers = []
    for old, new in zip(before.layers, after.layers, strict=True):
        sources = []
        for task_group in new:
            inside = sorted((part, index) for index, part in enumerate(old) if set(part) <= set(task_group))
            if sum(len(part) for part, _ in inside) != len(task_group):
                raise _not_joined(before, after)
            sources.append(tuple(index for _, index in inside))
        layers.append(tuple(sources))
    return tuple(layers)


def name_sources(
    old_names: Iterable[str],
    new_names: Iterable[str],
    before: TaskGrouping,
    after: TaskGrouping,
    *,
    prefixes: Sequence[str],
) -> dict[str, tuple[str, ...]]:
    """Returns, for every tensor of the new model, the names of the old tensors that it is made of.

    One source: carried bit by bit. Several: the tensors of a merge, in the order in which they are added.

    Args:
        old_names: All parameters (or buffers) of the old model, over all ranks.
        new_names: The same of the new model.
        before: Grouping of the old model.
        after: Grouping of the new model.
        prefixes: Per routed layer, what comes before the task group's index in the names of what it owns, for example
            ``encoder.layers.3.feed_forward.pools.g``.

    Raises:
        CheckpointError: If a new tensor has no source, or an old one is left over.
    """
    old, new = set(old_names), sorted(new_names)
    layers = task_group_sources(before, after)
    owned = [re.compile(re.escape(prefix) + r"(\d+)(?=\.)") for prefix in prefixes]
    result = {name: _sources(name, owned, prefixes, layers) for name in new}
    missing = sorted({source for sources in result.values() for source in sources} - old)
    unused = sorted(old - {source for sources in result.values() for source in sources})
    if missing or unused:
        raise CheckpointError(
            "tensors would be lost or made up by a change of the grouping",
            got=f"no source: {_shortened(missing)}; left over: {_shortened(unused)}",
            expected="every tensor carried by name or part of a merge",
            remedy="build both models from the same configuration, each with its own grouping",
        )
    return result


def expert_sources(
    before: TaskGrouping, after: TaskGrouping, pool_sizes: Sequence[Sequence[int]], *, mode: PoolMode
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Returns, per routed layer and new expert (numbered over the layer), the old experts that it is made of.

    Rows of gates follow this table; so do the rows of pools. ``merge``: expert i of a joined task group is made of
    expert i of each member. ``pool``: a joined task group owns the experts of all members, one after the other.

    Args:
        before: Old grouping.
        after: New grouping.
        pool_sizes: Per routed layer and old task group, its experts.
        mode: What becomes of the members' experts.
    """
    layers = []
    for sources, sizes in zip(task_group_sources(before, after), pool_sizes, strict=True):
        stops = list(accumulate(sizes))
        experts: list[tuple[int, ...]] = []
        for members in sources:
            rows = [range(stops[member] - sizes[member], stops[member]) for member in members]
            if mode == "pool":
                experts.extend((expert,) for row in rows for expert in row)
            else:
                experts.extend(zip(*rows, strict=True))
        layers.append(tuple(experts))
    return tuple(layers)


def _sources(
    name: str, owned: Sequence[re.Pattern[str]], prefixes: Sequence[str], layers: Sequence[LayerSources]
) -> tuple[str, ...]:
    for pattern, prefix, sources in zip(owned, prefixes, layers, strict=True):
        if match := pattern.match(name):
            index = int(match[1])
            members = sources[index] if index < len(sources) else (index,)
            return tuple(f"{prefix}{member}{name[match.end() :]}" for member in members)
    return (name,)


def _shortened(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) or "none"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _not_joined(before: TaskGrouping, after: TaskGrouping) -> CheckpointError:
    return CheckpointError(
        "the new grouping is not made by joining task groups of the old one",
        got=after.to_json()["layers"],
        expected=f"unions of {before.to_json()['layers']}",
        remedy="change the grouping by merges only",
    )
