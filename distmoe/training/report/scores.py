"""Scores per task: the newest evaluation against the one before it, and their course."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from distmoe.training.report.history import Record, RunHistory
from distmoe.training.report.style import Theme, dress, grid_shape, new_figure


@dataclass(frozen=True)
class ScoreRow:
    """One task (or the macro score, with metric ``mean``); ``None`` where there is no such evaluation."""

    task: str
    metric: str
    current: float
    previous: float | None
    best: float | None
    test: float | None

    @property
    def delta(self) -> float | None:
        return None if self.previous is None else self.current - self.previous


def best_of(history: RunHistory) -> tuple[int, Record] | None:
    """Step and evaluation of the best macro score on validation, the earlier one of equals; None without any.

    Scores of another structure do not count, as in the run itself: its checkpoints cannot be loaded any more.
    """
    merged = [
        line["step"]
        for line in history.structure
        if any(verdict["accepted"] for verdict in line["structure"]["verdicts"])
    ]
    after = max(merged, default=-1)
    rows = [row for row in history.split("validation") if row[0] > after]
    return max(rows, key=lambda row: (row[1]["macro"], -row[0]), default=None)


def score_rows(history: RunHistory) -> list[ScoreRow]:
    """Rows per task and one for the macro score; ``best`` is the score *at the step of the best macro score*."""
    validation = history.split("validation")
    if not validation:
        return []
    _, current = validation[-1]
    previous = validation[-2][1] if len(validation) > 1 else None
    found = best_of(history)
    best = None if found is None else found[1]
    tests = history.split("test")
    test = tests[-1][1] if tests else None
    rows = [
        ScoreRow(name, row["metric"], row["score"], _score(previous, name), _score(best, name), _score(test, name))
        for name, row in current["tasks"].items()
    ]
    macro = [None if one is None else one["macro"] for one in (previous, best, test)]
    return [*rows, ScoreRow("macro score", "mean", current["macro"], *macro)]


def shifts(history: RunHistory) -> list[Record]:
    """Evaluations of the test split under shift, the newest of each."""
    rows = [line["evaluation"] for line in history.evaluations if line["evaluation"]["split"].startswith("test~")]
    return list({row["split"]: row for row in rows}.values())


def score_changes(history: RunHistory, theme: Theme) -> Figure:
    """One line per task from its previous to its newest validation score."""
    rows = score_rows(history)
    figure = new_figure(theme, 8.0, 0.34 * len(rows) + 1.0)
    axes = figure.add_subplot()
    dress(axes, theme, title="Validation score: previous evaluation to newest", xlabel="score")
    for position, row in enumerate(reversed(rows)):
        before = row.current if row.previous is None else row.previous
        colour = theme.good if row.current > before else theme.bad if row.current < before else theme.muted
        axes.plot([before, row.current], [position, position], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot(before, position, "o", color=theme.background, markeredgecolor=theme.muted, markersize=6)
        axes.plot(row.current, position, "o", color=colour, markersize=7)
        axes.annotate(
            f"{row.current:.3f}",
            (max(before, row.current), position),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=theme.text,
        )
    axes.set_yticks(range(len(rows)), [f"{row.task} ({row.metric})" for row in reversed(rows)])
    axes.tick_params(axis="y", colors=theme.text, labelsize=8.5)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.margins(x=0.12)
    return figure


def score_curves(history: RunHistory, theme: Theme) -> Figure:
    """Small multiples: validation score by step; the best checkpoint's step is marked."""
    validation = history.split("validation")
    names = [name for name in history.task_names if any(name in row["tasks"] for _, row in validation)]
    panels = ["macro score", *names]
    rows, columns = grid_shape(len(panels))
    best = best_of(history)
    figure = new_figure(theme, 2.7 * columns, 1.9 * rows + 0.4)
    for index, name in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        if index == 0:
            points = [(step, row["macro"]) for step, row in validation]
        else:
            points = [(step, row["tasks"][name]["score"]) for step, row in validation if name in row["tasks"]]
        title = name if index == 0 else f"{name} · {validation[-1][1]['tasks'][name]['metric']}"
        dress(axes, theme, title=title, xlabel="step" if index >= len(panels) - columns else None)
        colour = theme.second if index == 0 else theme.accent
        if best is not None:
            axes.axvline(best[0], color=theme.muted, linewidth=0.9, linestyle=":")
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, linewidth=1.6)
    return figure


def _score(evaluation: dict | None, name: str) -> float | None:
    row = None if evaluation is None else evaluation["tasks"].get(name)
    return None if row is None else row["score"]
