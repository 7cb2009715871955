"""Loss curves: the mixture's, and each task's beside its validation loss."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from distmoe.training.report.history import RunHistory
from distmoe.training.report.style import Theme, dress, grid_shape, legend, new_figure, smooth


def total_loss(history: RunHistory, theme: Theme) -> Figure:
    """Mixture loss, raw and smoothed; auxiliary losses are the gap to the task part."""
    figure = new_figure(theme, 9.0, 3.4)
    axes = figure.add_subplot()
    dress(axes, theme, title="Mixture loss", xlabel="step", ylabel="loss")
    steps = [line["step"] for line in history.train]
    losses = [line["loss"] for line in history.train]
    axes.plot(steps, losses, color=theme.accent, alpha=0.3, linewidth=1.0)
    axes.plot(steps, smooth(losses), color=theme.accent, linewidth=2.0, label="loss (smoothed)")
    if any(line.get("auxiliary") for line in history.train):
        parts = [line["task_loss"] for line in history.train]
        axes.plot(steps, smooth(parts), color=theme.second, linewidth=1.5, linestyle="--", label="task part")
    validation = history.split("validation")
    if validation:
        points = [(step, _mean_loss(evaluation)) for step, evaluation in validation]
        axes.plot(
            *zip(*points, strict=True),
            color=theme.muted,
            marker="o",
            markersize=4,
            linewidth=1.0,
            label="validation, mean over tasks",
        )
    legend(axes, theme, loc="upper right")
    return figure


def task_losses(history: RunHistory, theme: Theme) -> Figure:
    """Small multiples: training loss of each window, and validation loss."""
    names = history.task_names
    rows, columns = grid_shape(len(names))
    figure = new_figure(theme, 2.7 * columns, 1.9 * rows + 0.4)
    validation = history.split("validation")
    for index, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, index + 1)
        dress(axes, theme, title=name, xlabel="step" if index >= len(names) - columns else None)
        points = [
            (line["step"], line["tasks"][name]["loss"])
            for line in history.train
            if line.get("tasks", {}).get(name, {}).get("loss") is not None
        ]
        if points:
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, color=theme.accent, alpha=0.3, linewidth=0.8)
            axes.plot(steps, smooth(list(losses)), color=theme.accent, linewidth=1.6, label="train")
        scored = [(step, row["tasks"][name]["loss"]) for step, row in validation if name in row["tasks"]]
        if scored:
            axes.plot(
                *zip(*scored, strict=True),
                color=theme.second,
                marker="o",
                markersize=3,
                linewidth=1.2,
                label="validation",
            )
        if index == 0 and (points or scored):
            legend(axes, theme, loc="best")
    return figure


def _mean_loss(evaluation: dict) -> float:
    losses = [math.nan if row["loss"] is None else row["loss"] for row in evaluation["tasks"].values()]
    return sum(losses) / max(1, len(losses))
