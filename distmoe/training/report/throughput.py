"""Speed and the optimizer's health: tokens per second, gradient norm, learning rate."""

from __future__ import annotations

import statistics

from matplotlib.figure import Figure

from distmoe.training.report.history import RunHistory
from distmoe.training.report.style import Theme, dress, new_figure


def throughput(history: RunHistory, theme: Theme) -> Figure:
    """Three curves side by side; the dotted line is the median speed."""
    figure = new_figure(theme, 10.8, 2.5)
    steps = [line["step"] for line in history.train]
    for index, (key, title) in enumerate(
        [("tokens_per_second", "Tokens per second"), ("grad_norm", "Gradient norm"), ("lr", "Learning rate")]
    ):
        axes = figure.add_subplot(1, 3, index + 1)
        dress(axes, theme, title=title, xlabel="step")
        points = [(s, line[key]) for s, line in zip(steps, history.train, strict=True) if line.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=theme.accent, linewidth=1.5)
        if key != "grad_norm":
            axes.set_ylim(bottom=0)
        if key == "tokens_per_second" and points:
            axes.axhline(median_speed(history), color=theme.muted, linewidth=0.9, linestyle=":")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        if key == "lr":
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
            axes.yaxis.get_offset_text().set(color=theme.muted, fontsize=8)
    return figure


def median_speed(history: RunHistory) -> float:
    """Median tokens per second: the first window, with its warm-up, does not count when there are others."""
    speeds = [line["tokens_per_second"] for line in history.train if "tokens_per_second" in line]
    return statistics.median(speeds[1:] or speeds) if speeds else 0.0
