"""The tree of task groups: who shares which routed layer with whom."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from distmoe.training.report.history import RunHistory
from distmoe.training.report.style import PALETTE, Theme, new_figure


def task_tree(history: RunHistory, theme: Theme) -> Figure:
    """Columns are routed layers, shallow to deep; a box is a task group, lines lead to the groups it splits into."""
    layers = [[tuple(task_group) for task_group in partition] for partition in history.partitions]
    names = history.task_names
    columns, kept = _distinct(layers)
    order = [task for task_group in layers[-1] for task in task_group]
    row_of = {task: row for row, task in enumerate(order)}
    numbers = history.summary.get("routed_layers", list(range(len(layers))))
    figure = new_figure(theme, 2.3 * len(columns) + 2.4, 0.34 * len(names) + 0.9)
    axes = figure.add_subplot()
    axes.set_facecolor(theme.background)
    axes.axis("off")
    colour_of = {task: PALETTE[i % len(PALETTE)] for i, task_group in enumerate(layers[-1]) for task in task_group}
    for column, partition in enumerate(columns):
        for task_group in partition:
            rows = [row_of[task] for task in task_group]
            _box(axes, column, min(rows), max(rows), _colour(task_group, partition, colour_of, theme))
            if column + 1 < len(columns):
                for child in columns[column + 1]:
                    if set(child) <= set(task_group):
                        _link(axes, theme, column, _middle(rows), _middle([row_of[task] for task in child]))
        span = _span([numbers[index] for index in kept[column]])
        axes.text(column, -1.0, span, ha="center", va="center", fontsize=9, color=theme.muted)
    for task, row in row_of.items():
        axes.text(len(columns) - 0.52, row, names[task], ha="left", va="center", fontsize=9, color=theme.text)
    axes.set_xlim(-0.5, len(columns) + 0.6)
    axes.set_ylim(len(names) - 0.3, -1.5)
    return figure


def _distinct(layers: list[list[tuple[int, ...]]]) -> tuple[list[list[tuple[int, ...]]], list[list[int]]]:
    """Joins consecutive layers with equal partitions into one column."""
    columns: list[list[tuple[int, ...]]] = []
    kept: list[list[int]] = []
    for index, partition in enumerate(layers):
        if columns and set(columns[-1]) == set(partition):
            kept[-1].append(index)
        else:
            columns.append(partition)
            kept.append([index])
    return columns, kept


def _colour(task_group: tuple[int, ...], partition: list, colour_of: dict[int, str], theme: Theme) -> str:
    return (
        theme.muted
        if len(partition) == 1 and len({colour_of[task] for task in task_group}) > 1
        else colour_of[task_group[0]]
    )


def _box(axes: Any, column: int, first: int, last: int, colour: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (column - 0.36, first - 0.32),
            0.72,
            last - first + 0.64,
            linewidth=1.4,
            boxstyle="round,pad=0.0,rounding_size=0.12",
            edgecolor=colour,
            facecolor=colour + "33",
            mutation_aspect=1.0,
        )
    )
    axes.text(
        column,
        (first + last) / 2,
        f"{last - first + 1} task{'s' if last > first else ''}",
        ha="center",
        va="center",
        fontsize=8.5,
        color=colour,
    )


def _link(axes: Any, theme: Theme, column: int, start: float, end: float) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    left, right = column + 0.36, column + 0.64
    middle = (left + right) / 2
    path = Path(
        [(left, start), (middle, start), (middle, end), (right, end)],
        [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4],
    )
    axes.add_patch(PathPatch(path, facecolor="none", edgecolor=theme.muted, linewidth=1.2))


def _middle(rows: list[int]) -> float:
    return (min(rows) + max(rows)) / 2


def _span(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    return "layers " + (", ".join(map(str, numbers)) if len(numbers) < 4 else f"{numbers[0]} … {numbers[-1]}")
