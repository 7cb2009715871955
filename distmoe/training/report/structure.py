"""Structural learning in pictures: how alike task groups were at each phase, and what became of the proposals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distmoe.training.report import html
from distmoe.training.report.history import Record, RunHistory
from distmoe.training.report.style import Theme, dress, grid_shape, new_figure

# What structure.learn.similarity measures.
_MEANING = {
    "transfer": "how well the layers of one task serve the labels of another, relative to other pairs",
    "answers": "how well what a task's head makes of its layers serves the labels of another, relative to other pairs",
    "cka": "unbiased linear CKA of their features",
}
_NUMBERED = 16  # members up to which a cell shows its number


def explanation(history: RunHistory) -> str:
    """What the section shows, for the similarity and the trial of this run."""
    learn = history.config.get("structure", {}).get("learn") or {}
    similarity = learn.get("similarity")
    meaning = f" ({similarity}: {_MEANING[similarity]})" if similarity in _MEANING else ""
    if learn.get("trial_steps") == 0:
        trial = "There was no trial: every proposal was kept, and the errors of the table were not measured."
    else:
        trial = (
            "A trial compares validation errors of a merge's tasks with those without the merge, and, for a merge of "
            "all candidates, with those of the proposed task groups; errors before the trial decide nothing."
        )
    return f"Similarity of task groups at each phase{meaning}; a frame marks a merge that was kept. {trial}"


def similarity_maps(history: RunHistory, theme: Theme) -> Figure:
    """One heat map per phase and frontier: similarity of its members; merges that were kept are framed."""
    panels = [(line, proposal) for line in history.structure for proposal in line["structure"]["proposals"]]
    rows, columns = grid_shape(len(panels), columns=3)
    size = max(len(proposal["frontier"]["members"]) for _, proposal in panels)
    side = 0.34 * size + 1.7
    figure = new_figure(theme, side * columns, (side - 0.3) * rows)
    for place, (line, proposal) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        _panel(axes, theme, history, line, proposal)
    return figure


def merge_table(history: RunHistory) -> str:
    """Every proposed merge with its numbers, and the parameters of the model after its phase."""
    rows = []
    for line in history.structure:
        record = line["structure"]
        count = record["parameters"]
        for verdict in record["verdicts"]:
            merge, kept = verdict["merge"], verdict["accepted"]
            rows.append(
                [
                    html.Cell(f"{record['phase']} (step {line['step']})"),
                    html.Cell(f"layer {_model_layer(history, merge['layer'])}", text=True),
                    html.Cell(" + ".join(_names(history, member) for member in merge["members"]), text=True),
                    html.Cell(_cost(verdict["against_control"])),
                    html.Cell("" if verdict["against_rival"] is None else _cost(verdict["against_rival"])),
                    html.Cell(_change(verdict["against_before"])),
                    html.Cell("kept" if kept else "undone", "good" if kept else "bad"),
                    html.Cell(f"{count['before']:,} → {count['after']:,}"),
                ]
            )
    header = ("phase", "at", "merge", "error against no merge", "against its task groups", "against before", "outcome",
              "parameters")  # fmt: skip
    table = html.table(header, rows, text_columns=3) if rows else "<p>No merge was proposed.</p>"
    unit = "Errors in per cent of those of a constant answer, a change with its standard error. " if rows else ""
    return table + f"<p>{unit}{_spell_agreement(history)}{_spell_seconds(history)}</p>"


def heat_map(
    axes: Axes, theme: Theme, values_MM: np.ndarray, labels: Sequence[str], *, title: str, is_relative: bool = False
) -> None:
    """One matrix of similarities, with numbers where there is room; relative ones have no upper bound."""
    dress(axes, theme, title=title, grid=False)
    others = values_MM[~np.eye(len(labels), dtype=bool)]
    if is_relative:
        lowest, highest = float(others.min()), float(max(others.max(), others.min() + 1e-6))
    else:
        # The residual pushes all values of CKA towards 1; what matters is the difference between them.
        lowest, highest = min(float(values_MM.min()), 0.95), 1.0
    axes.imshow(values_MM, cmap=theme.sequence, vmin=lowest, vmax=highest, interpolation="nearest")
    if len(labels) <= _NUMBERED:
        for row, column in np.argwhere(~np.eye(len(labels), dtype=bool)):
            bright = (values_MM[row, column] - lowest > 0.6 * (highest - lowest)) == (theme.name == "light")
            value, colour = f"{values_MM[row, column]:.2f}".replace("0.", "."), "#ffffff" if bright else "#1f2430"
            axes.text(column, row, value, ha="center", va="center", fontsize=6, color=colour)
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(colors=theme.text, labelsize=7)


def _panel(axes: Axes, theme: Theme, history: RunHistory, line: Record, proposal: Record) -> None:
    from matplotlib.patches import Rectangle

    members = [tuple(member) for member in proposal["frontier"]["members"]]
    layer = proposal["frontier"]["layer"]
    kept = [
        {tuple(member) for member in verdict["merge"]["members"]}
        for verdict in line["structure"]["verdicts"]
        if verdict["accepted"] and verdict["merge"]["layer"] == layer
    ]
    # Members of one merge stand side by side.
    order = sorted(range(len(members)), key=lambda place: (_merge_of(members[place], kept), place))
    values_MM = np.asarray(proposal["similarity"], dtype=float)[np.ix_(order, order)]
    title = f"phase {line['structure']['phase']}, layer {_model_layer(history, layer)}"
    is_relative = proposal["threshold"] is None
    labels = [_names(history, members[place]) for place in order]
    heat_map(axes, theme, values_MM, labels, title=title, is_relative=is_relative)
    for merge in kept:
        places = [index for index, place in enumerate(order) if members[place] in merge]
        if places:
            corner, side = min(places) - 0.5, len(places)
            axes.add_patch(Rectangle((corner, corner), side, side, fill=False, edgecolor=theme.second, linewidth=1.8))


def _cost(cost: Record) -> str:
    """A change of errors with its standard error."""
    return _change(cost["change"]) + ("" if cost["noise"] is None else f" ± {100 * cost['noise']:.1f}")


def _change(change: float | None) -> str:
    return "not finite" if change is None else f"{100 * change:+.1f}"


def _spell_agreement(history: RunHistory) -> str:
    agreement = history.structure[-1]["structure"].get("family_agreement") if history.structure else None
    if agreement is None:
        return ""
    return f"Task groups of the last layer agree with the tasks' families: {agreement:.2f} (adjusted Rand index). "


def _spell_seconds(history: RunHistory) -> str:
    """What the phases cost; repeated lines of one phase are of a run that was resumed."""
    records = [line["structure"] for line in history.structure]
    seconds, steps = (sum(record[key] for record in records) for key in ("seconds", "steps_worth"))
    return f"structural phases: {len(records)}. They took {seconds:.0f} s, as long as {steps:.0f} training steps."


def _merge_of(member: tuple[int, ...], kept: list[set[tuple[int, ...]]]) -> int:
    return next((index for index, merge in enumerate(kept) if member in merge), len(kept))


def _names(history: RunHistory, tasks: Any) -> str:
    names = [history.task_names[task] for task in tasks]
    return ", ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more"


def _model_layer(history: RunHistory, routed_index: int) -> int:
    layers = history.summary.get("routed_layers", [])
    return int(layers[routed_index]) if routed_index < len(layers) else routed_index
