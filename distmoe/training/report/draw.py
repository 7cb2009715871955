"""Draws the whole report of a run folder: ``report/index.html`` and its pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from distmoe.training.progress import duration
from distmoe.training.report import html, loss, routing, scores, structure, throughput, tree
from distmoe.training.report.history import RunHistory, read_history
from distmoe.training.report.style import Theme, save

_Draw = Callable[[RunHistory, Theme], Figure]


def draw_report(run_folder: Path) -> Path:
    """Writes ``report/`` of a run and returns the path of its page. The run may still be going.

    Raises:
        DataError: If the folder is not a run's.
    """
    history = read_history(run_folder)
    folder = run_folder / "report"
    folder.mkdir(exist_ok=True)
    body = [html.tiles(_headline(history)), *_sections(history, folder)]
    target = folder / "index.html"
    target.write_text(html.page(f"Run {history.name}", _subtitle(history), body), encoding="utf-8")
    return target


def _sections(history: RunHistory, folder: Path) -> list[str]:
    def image(name: str, draw: _Draw, description: str) -> str:
        return html.picture(save(functools.partial(draw, history), folder, name), description)

    parts = []
    if history.split("validation"):
        parts.append(
            html.section(
                "Scores",
                "Each task's own metric on validation. Best is the checkpoint with the highest macro score (mean "
                "over tasks), never a maximum per task; test scores are of the model named above.",
                _score_table(history),
                image("score_changes", scores.score_changes, "newest against previous scores"),
                image("scores", scores.score_curves, "validation scores by step"),
            )
        )
    if scores.shifts(history):
        parts.append(
            html.section(
                "Under shift",
                "The test split once more with changed texts: noise, a share of the words replaced; drop, a share left "
                "out; longer, filler words put between the others. Its last row counts texts that data.max_length cut.",
                _shift_table(history),
            )
        )
    if history.train:
        parts.append(
            html.section(
                "Loss",
                "Mean over the window between two log lines, over all ranks; thick lines are smoothed.",
                image("loss", loss.total_loss, "mixture loss by step"),
                image("task_losses", loss.task_losses, "loss of each task by step"),
            )
        )
    if history.recent_routing():
        parts.append(
            html.section(
                "Routing",
                "Share of each task's tokens at each expert, and how evenly experts are used. Pictures of routing "
                "explain scores; they never replace them.",
                image("routing", routing.heat_maps, "task by expert heat maps"),
                image("load", routing.load_bars, "load of each expert"),
                image("load_history", routing.load_curves, "busiest and idlest expert by step"),
            )
        )
    if history.structure:
        parts.append(
            html.section(
                "Structural learning",
                structure.explanation(history),
                structure.merge_table(history),
                image("similarity", structure.similarity_maps, "similarity of task groups by phase and layer"),
            )
        )
    if history.partitions:
        parts.append(
            html.section(
                "Task groups",
                "Tasks in one box share that layer's experts; a deeper layer only ever splits.",
                image("tree", tree.task_tree, "tree of task groups"),
            )
        )
    if history.train:
        parts.append(
            html.section(
                "Speed and optimizer",
                "Per window of the log; evaluation and saving are not counted.",
                image("throughput", throughput.throughput, "speed, gradient norm, learning rate"),
            )
        )
    parts.append(
        html.section(
            "Data and configuration",
            "Sizes after truncation and limits.",
            _task_table(history),
            html.folded("config.yaml", yaml.safe_dump(history.config, sort_keys=False)),
        )
    )
    return parts


def _subtitle(history: RunHistory) -> str:
    if not history.result:
        return "This run has not ended yet."
    result = history.result
    return f"{result['ended']} after {result['step']} steps in {duration(result['seconds'])}."


def _headline(history: RunHistory) -> list[tuple[str, str]]:
    rows = []
    best = scores.best_of(history)
    if best is not None:
        rows.append((f"best macro score (step {best[0]})", f"{best[1]['macro']:.4f}"))
    for _, evaluation in history.split("test")[-1:]:
        rows.append(("test macro score", f"{evaluation['macro']:.4f}"))
    if history.train:
        rows += [
            ("final loss", f"{history.train[-1]['loss']:.4f}"),
            ("steps", f"{history.train[-1]['step']:,}"),
            ("tokens per second", f"{throughput.median_speed(history):,.0f}"),
        ]
        skipped = history.train[-1].get("skipped_steps", 0)
        if skipped:
            rows.append(("skipped steps", str(skipped)))
    parameters = history.summary.get("parameters", {})
    if parameters:
        rows += [("parameters", _short(parameters["total"])), ("active per token", _short(parameters["active"]))]
    if "num_ranks" in history.summary:
        rows.append(("ranks", str(history.summary["num_ranks"])))
    return rows


def _score_table(history: RunHistory) -> str:
    rows = []
    without_test = {task["name"] for task in history.summary.get("tasks", []) if not task["test"]}
    for row in scores.score_rows(history):
        tone = "" if not row.delta else "good" if row.delta > 0 else "bad"
        delta = "–" if row.delta is None else f"{row.delta:+.4f}"
        rows.append(
            [
                html.Cell(row.task),
                html.Cell(row.metric, text=True),
                html.Cell(_number(row.previous)),
                html.Cell(_number(row.current)),
                html.Cell(delta, tone),
                html.Cell(_number(row.best)),
                html.Cell(
                    _number(row.test) + (" (validation)" if row.test is not None and row.task in without_test else "")
                ),
            ]
        )
    header = ("task", "metric", "previous", "newest", "change", "at best macro", "test")
    return html.table(header, rows, total=True, text_columns=2)


def _shift_table(history: RunHistory) -> str:
    columns = [evaluation for _, evaluation in history.split("test")[-1:]] + scores.shifts(history)
    cut = history.summary.get("cut_under_shift", {})
    rows = [
        [html.Cell(task), *(html.Cell(_number(one["tasks"][task]["score"])) for one in columns)]
        for task in columns[0]["tasks"]
    ]
    rows.append([html.Cell("macro score"), *(html.Cell(_number(one["macro"])) for one in columns)])
    rows.append(
        [html.Cell("cut"), *(html.Cell(f"{cut[one['split']]:,}" if one["split"] in cut else "–") for one in columns)]
    )
    return html.table(("task", *(one["split"].removeprefix("test~") for one in columns)), rows)


def _task_table(history: RunHistory) -> str:
    header = ("task", "type", "family", "train", "validation", "test", "truncated", "share of mixture")
    rows = [
        [
            html.Cell(task["name"]),
            html.Cell(task["kind"], text=True),
            html.Cell(task.get("family") or "–", text=True),
            *(html.Cell(f"{task[split]:,}") for split in ("train", "validation", "test")),
            html.Cell(f"{task['truncated']:,}"),
            html.Cell(f"{100 * task['weight']:.1f} %"),
        ]
        for task in history.summary.get("tasks", [])
    ]
    return html.table(header, rows, text_columns=3) if rows else ""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _short(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
