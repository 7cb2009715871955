"""The picture of a simulation: four panels over the number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from distmoe.forecast.simulate import KINDS, Point
from distmoe.training.report.style import PALETTE, Theme, dress, legend, new_figure, save

_PANELS: tuple[tuple[str, Callable[[Point], float]], ...] = (
    ("kB between nodes, one layer, per rank", lambda point: point.traffic.bytes_between / point.num_ranks / 1e3),
    ("Messages of one layer, all ranks", lambda point: float(point.traffic.messages)),
    ("Seconds of one layer's exchanges", lambda point: point.exchange_seconds),
    ("Step time over its noiseless value (waiting)", lambda point: point.waiting),
)
_LINES = {"global": "-", "task group": "--", "task group in a node": ":"}


def draw_simulation(points: Sequence[Point], folder: Path, name: str = "simulation") -> tuple[Path, Path]:
    """Writes ``simulation.png`` and ``simulation-dark.png``: a colour per number of task groups, a dash per kind."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = sorted({point.num_task_groups for point in points})

    def paint(theme: Theme) -> Figure:
        figure = new_figure(theme, 10.8, 6.4)
        for index, (title, value) in enumerate(_PANELS):
            axes = figure.add_subplot(2, 2, index + 1)
            dress(axes, theme, title=title, xlabel="ranks")
            for kind in KINDS:
                # One all-to-all over all ranks does not know task groups: one line for it.
                for number, count in enumerate(counts[:1] if kind == "global" else counts):
                    chosen = [p for p in points if p.kind == kind and p.num_task_groups == count]
                    colour = theme.muted if kind == "global" else PALETTE[number % len(PALETTE)]
                    label = "global" if kind == "global" else f"{kind}, {count}"
                    axes.plot(
                        [p.num_ranks for p in chosen], [value(p) for p in chosen], _LINES[kind], color=colour,
                        label=label, linewidth=1.6,
                    )  # fmt: skip
            axes.set_xscale("log", base=2)
            if index in (1, 2):
                axes.set_yscale("log", nonpositive="mask")  # a block of one rank sends nothing
            if index == 1:
                legend(axes, theme, loc="upper left")
        return figure

    return save(paint, folder, name)
