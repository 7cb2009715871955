"""Which tasks use which experts, and how evenly the experts are used."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from distmoe.training.report.history import RunHistory
from distmoe.training.report.style import PALETTE, Theme, dress, grid_shape, legend, new_figure


def heat_maps(history: RunHistory, theme: Theme) -> Figure:
    """Per routed layer: share of a task's tokens at each expert (rows add up to 1); lines part the task groups."""
    routing = history.recent_routing()
    layers = sorted(routing, key=layer_number)
    names = history.task_names
    num_experts = max(len(routing[layer]["load"]) for layer in layers)
    width = max(3.2, 0.34 * num_experts + 1.6)
    columns = max(1, min(len(layers), int(11 // width)))
    rows = -(-len(layers) // columns)
    figure = new_figure(theme, width * columns, (0.27 * len(names) + 0.95) * rows)
    image: Any = None
    for index, layer in enumerate(layers):
        axes = figure.add_subplot(rows, columns, index + 1)
        image = _heat_map(axes, theme, layer, routing[layer], names)
        _task_group_borders(axes, theme, history, index, len(routing[layer]["load"]))
        if index % columns:
            axes.set_yticklabels([])
    bar = figure.colorbar(image, ax=figure.axes, shrink=0.8, aspect=30, pad=0.01)
    bar.set_label("share of the task's tokens,\nlast 10 log lines", fontsize=8, color=theme.muted)
    bar.ax.tick_params(colors=theme.muted, labelsize=7.5, length=0)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def load_curves(history: RunHistory, theme: Theme) -> Figure:
    """Per routed layer: the largest and smallest share of an expert over time; the dotted line is an even share."""
    lines = [line for line in history.train if line.get("routing")]
    layers = sorted(lines[-1]["routing"], key=layer_number)
    rows, columns = grid_shape(len(layers))
    figure = new_figure(theme, max(5.0, 2.7 * columns), 2.0 * rows + 0.4)
    for index, layer in enumerate(layers):
        axes = figure.add_subplot(rows, columns, index + 1)
        dress(
            axes,
            theme,
            title=f"layer {layer_number(layer)}",
            xlabel="step" if index >= len(layers) - columns else None,
            ylabel="share of tokens" if index % columns == 0 else None,
        )
        steps = [line["step"] for line in lines]
        # The number of experts changes where structural learning has merged task groups.
        shares = [_normalised(line["routing"][layer]["load"]) for line in lines]
        busiest, idlest = ([extreme(row) for row in shares] for extreme in (np.max, np.min))
        axes.fill_between(steps, idlest, busiest, color=theme.accent, alpha=0.15, linewidth=0)
        axes.plot(steps, busiest, color=theme.accent, linewidth=1.6, label="busiest")
        axes.plot(steps, idlest, color=theme.second, linewidth=1.6, label="idlest")
        axes.plot(
            steps, [1 / len(row) for row in shares], color=theme.muted, linewidth=0.9, linestyle=":", label="even"
        )
        axes.set_ylim(bottom=0)
        if index == 0:
            legend(axes, theme, loc="best")
    return figure


def load_bars(history: RunHistory, theme: Theme) -> Figure:
    """Per routed layer: the recent share of every expert, coloured by task group."""
    routing = history.recent_routing()
    layers = sorted(routing, key=layer_number)
    rows, columns = grid_shape(len(layers))
    figure = new_figure(theme, max(5.0, 2.7 * columns), 1.9 * rows + 0.4)
    for index, layer in enumerate(layers):
        axes = figure.add_subplot(rows, columns, index + 1)
        dress(
            axes,
            theme,
            title=f"layer {layer_number(layer)}",
            xlabel="expert" if index >= len(layers) - columns else None,
        )
        shares = _normalised(routing[layer]["load"])
        sizes = _pool_sizes(history, index, len(shares))
        colours = [
            theme.accent if len(sizes) == 1 else PALETTE[task_group % len(PALETTE)]
            for task_group, size in enumerate(sizes)
            for _ in range(size)
        ]
        axes.bar(range(len(shares)), shares, color=colours, width=0.75)
        axes.axhline(1 / len(shares), color=theme.muted, linewidth=0.9, linestyle=":")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def layer_number(layer: str) -> int:
    """``"layer_3"`` -> 3."""
    return int(layer.rsplit("_", 1)[-1])


def _heat_map(axes: Axes, theme: Theme, layer: str, counts: dict[str, Any], names: list[str]) -> Any:
    num_experts = len(counts["load"])
    table = np.array([_normalised(counts["tasks"].get(name, [0] * num_experts)) for name in names])
    dress(axes, theme, title=f"layer {layer_number(layer)}", xlabel="expert", grid=False)
    image = axes.imshow(table, aspect="auto", cmap=theme.sequence, vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", colors=theme.text)
    axes.set_xticks(range(0, num_experts, max(1, num_experts // 8)))
    for spine in axes.spines.values():
        spine.set_visible(False)
    if num_experts <= 16:
        low = 0.5 if theme.name == "light" else 0.6
        for task, expert in np.argwhere(table >= 0.005):
            share = table[task, expert]
            dark_cell = share > low if theme.name == "light" else share < low
            axes.text(
                expert,
                task,
                f"{share:.2f}".lstrip("0") if share < 0.995 else "1",
                ha="center",
                va="center",
                fontsize=6.5,
                color="#ffffff" if dark_cell else "#1f2430",
            )
    return image


def _task_group_borders(axes: Axes, theme: Theme, history: RunHistory, index: int, num_experts: int) -> None:
    for border in list(accumulate(_pool_sizes(history, index, num_experts)))[:-1]:
        axes.axvline(border - 0.5, color=theme.second, linewidth=1.2)


def _pool_sizes(history: RunHistory, index: int, num_experts: int) -> list[int]:
    """Experts of each task group; runs of older versions do not say: equal shares."""
    sizes, partitions = history.pool_sizes, history.partitions
    if index < len(sizes) and sum(sizes[index]) == num_experts:
        return sizes[index]
    count = len(partitions[index]) if index < len(partitions) else 1
    return [num_experts // count] * count if num_experts % count == 0 else [num_experts]


def _normalised(counts: list[float]) -> NDArray[np.float64]:
    values = np.asarray(counts, dtype=np.float64)
    return values / max(values.sum(), 1e-12)
