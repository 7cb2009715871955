"""The outcome of a study as one picture: every run of every arm, and the differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distmoe.studies.intervals import Estimate, by_seed, difference, estimate, macro
from distmoe.studies.study import Study
from distmoe.training.report.style import Theme, dress, new_figure, save

Records = Mapping[tuple[str, int], Mapping[str, Any]]


def draw_study(study: Study, records: Records, folder: Path) -> tuple[Path, Path]:
    """Writes ``study.png`` and ``study-dark.png``."""
    return save(partial(paint, study, records), folder, "study")


def paint(study: Study, records: Records, theme: Theme) -> Figure:
    """Left: a dot per run, mean and interval per arm. Right: paired differences; green lies above 0, red below."""
    arms = [name for name in study.arms if by_seed(records, name)]
    found = [
        (f"{row.arm} - {row.against}", difference(records, row.arm, row.against))
        for row in study.comparisons
        if row.arm in arms and row.against in arms
    ]
    differences = [(label, one) for label, one in found if one is not None]
    figure = new_figure(theme, 10.0, 0.36 * max(len(arms), len(differences), 3) + 1.2)
    left, right = figure.subplots(1, 2)
    dress(left, theme, title="Macro test score: runs, mean, 95 % interval", xlabel="macro score")
    for place, name in enumerate(reversed(arms)):
        scores = [macro(record) for record in by_seed(records, name).values()]
        left.plot(scores, [place] * len(scores), "o", color=theme.muted, markersize=4, alpha=0.7)
        _bar(left, estimate(scores), place, theme.accent)
    _label(left, [f"{name}  {study.arms[name].title}" for name in reversed(arms)], theme)
    dress(right, theme, title="Differences, paired by seed", xlabel="difference of macro scores")
    right.axvline(0.0, color=theme.muted, linewidth=0.9, linestyle=":")
    colours = {"higher": theme.good, "lower": theme.bad, "open": theme.muted}
    for place, (_, one) in enumerate(reversed(differences)):
        _bar(right, one, place, colours[one.verdict])
    _label(right, [label for label, _ in reversed(differences)], theme)
    return figure


def _bar(axes: Axes, found: Estimate, place: int, colour: str) -> None:
    if math.isfinite(found.low):
        axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
    axes.plot(found.mean, place, "D", color=colour, markersize=6)


def _label(axes: Axes, labels: list[str], theme: Theme) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", colors=theme.text, labelsize=8)
    axes.set_ylim(-0.7, len(labels) - 0.3)
