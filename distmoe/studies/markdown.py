"""How numbers and tables of a study are written."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distmoe.studies.intervals import Estimate


def interval(found: Estimate, *, signed: bool = False) -> str:
    """Mean and 95 % interval."""
    sign = "+" if signed else ""
    if not math.isfinite(found.low):
        return f"{found.mean:{sign}.4f} [one seed]"
    return f"{found.mean:{sign}.4f} [{found.low:{sign}.4f}, {found.high:{sign}.4f}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
