"""The look of all pictures: two themes, one palette, one way to save.

Every picture is drawn twice, for light and dark pages. Figures are made without pyplot, so that drawing a report
inside a training process leaves no global state behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 130


@dataclass(frozen=True)
class Theme:
    """Colours of one variant; ``sequence`` is the colour map of heat maps."""

    name: str
    background: str
    text: str
    muted: str
    grid: str
    accent: str
    second: str
    good: str
    bad: str
    sequence: str


LIGHT = Theme("light", "#ffffff", "#1f2430", "#6b7280", "#e5e7eb", "#2563eb", "#ea7317", "#15803d", "#b91c1c", "Blues")
DARK = Theme("dark", "#161a22", "#e6e8ee", "#949cab", "#2b313d", "#6ea8fe", "#fba94c", "#4ade80", "#f87171", "cividis")

# Distinguishable also with colour-blind vision (Okabe and Ito 2008), reordered for both backgrounds.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a7cd8", "#a3a500")

Painter = Callable[[Theme], Figure]


def new_figure(theme: Theme, width: float, height: float) -> Figure:
    """A blank figure of the theme, in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=theme.background, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(
    axes: Axes,
    theme: Theme,
    *,
    title: str | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    grid: bool = True,
) -> None:
    """Applies the theme to one pair of axes: no box, thin grid, small type."""
    axes.set_facecolor(theme.background)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)
    axes.tick_params(colors=theme.muted, labelsize=8, length=0)
    if grid:
        axes.grid(True, color=theme.grid, linewidth=0.8)
        axes.set_axisbelow(True)
    if title:
        axes.set_title(title, loc="left", fontsize=9.5, color=theme.text, fontweight="bold")
    if xlabel:
        axes.set_xlabel(xlabel, fontsize=8.5, color=theme.muted)
    if ylabel:
        axes.set_ylabel(ylabel, fontsize=8.5, color=theme.muted)


def legend(axes: Axes, theme: Theme, **options: Any) -> None:
    box = axes.legend(frameon=False, fontsize=8, **options)
    for text in box.get_texts():
        text.set_color(theme.text)


def save(painter: Painter, folder: Path, name: str) -> tuple[Path, Path]:
    """Draws ``name.png`` and ``name-dark.png``."""
    paths = (folder / f"{name}.png", folder / f"{name}-dark.png")
    for theme, path in zip((LIGHT, DARK), paths, strict=True):
        with rc_context({"font.family": "DejaVu Sans"}):
            painter(theme).savefig(path, facecolor=theme.background)
    return paths


def grid_shape(count: int, columns: int = 4) -> tuple[int, int]:
    """Rows and columns of small multiples."""
    columns = min(columns, count)
    return -(-count // columns), columns


def smooth(values: list[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average, corrected for its start as in Adam."""
    average, result = 0.0, []
    for index, value in enumerate(values):
        average = weight * average + (1 - weight) * value
        result.append(average / (1 - weight ** (index + 1)))
    return result
