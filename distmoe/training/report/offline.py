"""Pictures of what a model suggests: heat maps and dendrograms per layer, and the tree of the proposed grouping."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from distmoe.structure.tree import dendrogram
from distmoe.tasks import TaskGrouping
from distmoe.training.report.history import RunHistory
from distmoe.training.report.structure import heat_map
from distmoe.training.report.style import Theme, dress, grid_shape, new_figure, save
from distmoe.training.report.tree import task_tree
from distmoe.training.structural.offline import Finding


def draw(finding: Finding, folder: Path, *, threshold: float) -> list[Path]:
    """Writes ``similarity``, ``dendrogram`` and ``tree`` as PNG, with their dark variants; returns all paths.

    Where every layer has one task group, nothing was compared, and there is only the tree.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    if any(layer.similarity is not None for layer in finding.layers):
        paths += save(functools.partial(heat_maps, finding), folder, "similarity")
        paths += save(functools.partial(dendrograms, finding, threshold), folder, "dendrogram")
    return [*paths, *save(functools.partial(task_tree, _as_history(finding)), folder, "tree")]


def heat_maps(finding: Finding, theme: Theme) -> Figure:
    """One matrix per layer, its members in the order of the layer's dendrogram."""
    layers = [layer for layer in finding.layers if layer.similarity is not None]
    rows, columns = grid_shape(len(layers), columns=3)
    side = 0.34 * max(len(layer.members) for layer in layers) + 1.7
    figure = new_figure(theme, side * columns, (side - 0.3) * rows)
    for place, layer in enumerate(layers):
        assert layer.similarity is not None
        order = dendrogram(layer.similarity).leaf_order
        values_MM = layer.similarity.values()[np.ix_(order, order)]
        labels = [", ".join(finding.tasks[task].name for task in layer.members[leaf]) for leaf in order]
        heat_map(figure.add_subplot(rows, columns, place + 1), theme, values_MM, labels, title=f"layer {layer.layer}")
    return figure


def dendrograms(finding: Finding, threshold: float, theme: Theme) -> Figure:
    """Average linkage of every layer's similarities; the dotted line is the threshold."""
    from scipy.cluster.hierarchy import dendrogram as lay_out

    layers = [layer for layer in finding.layers if layer.similarity is not None]
    rows, columns = grid_shape(len(layers), columns=2)
    widest = max(len(layer.members) for layer in layers)
    figure = new_figure(theme, (0.45 * widest + 2.2) * columns, 3.2 * rows)
    for place, layer in enumerate(layers):
        assert layer.similarity is not None
        axes = figure.add_subplot(rows, columns, place + 1)
        dress(axes, theme, title=f"layer {layer.layer}", ylabel="similarity")
        shape = lay_out(dendrogram(layer.similarity).joins, no_plot=True)
        for x, distance in zip(shape["icoord"], shape["dcoord"], strict=True):
            axes.plot(x, [1.0 - value for value in distance], color=theme.accent, linewidth=1.5)
        axes.axhline(threshold, color=theme.second, linewidth=1.0, linestyle=":")
        labels = [", ".join(finding.tasks[task].name for task in layer.members[leaf]) for leaf in shape["leaves"]]
        axes.set_xticks([5 + 10 * index for index in range(len(labels))], labels, rotation=90)
    return figure


def _as_history(finding: Finding) -> RunHistory:
    """The value that the picture of the tree reads; tasks that were not looked at are left out."""
    seen = sorted(task for own in finding.layers[0].partition for task in own)
    place = {task: index for index, task in enumerate(seen)}
    layers = [[[place[task] for task in own] for own in layer.partition] for layer in finding.layers]
    summary = {
        "tasks": [{"name": finding.tasks[task].name} for task in seen],
        "grouping": TaskGrouping.from_partitions(len(seen), layers).to_json(),
        "routed_layers": [layer.layer for layer in finding.layers],
    }
    return RunHistory("offline", summary=summary)
