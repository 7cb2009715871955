"""Numbers of arms and intervals of their differences. Two arms are compared seed by seed: a pair shares its data order
and initial weights, and what seeds have in common drops out of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval (Student's t); the interval is infinite with one seed.

    Attributes:
        mean: Over seeds.
        low: Lower end of the 95 % interval.
        high: Upper end.
        num_seeds: Values behind it.
    """

    mean: float
    low: float
    high: float
    num_seeds: int

    @property
    def verdict(self) -> str:
        """``higher``, ``lower``, or ``open`` where 0 lies in the interval."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "open"


def estimate(values: Sequence[float]) -> Estimate:
    """Returns mean and interval of at least one value."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Estimate(mean, -math.inf, math.inf, count)
    error = float(stats.sem(values))
    if error == 0:  # the t distribution has no scale then
        return Estimate(mean, mean, mean, count)
    low, high = stats.t.interval(CONFIDENCE, count - 1, loc=mean, scale=error)
    return Estimate(mean, float(low), float(high), count)


def macro(record: Mapping[str, Any]) -> float:
    """Mean score of a run's tasks."""
    return float(np.mean(list(record["tasks"].values())))


def under_shift(record: Mapping[str, Any], *, shifts: Sequence[str]) -> float | None:
    """Mean over shifts of the macro score under them; None of a run that was not scored under all of them."""
    found = record.get("shifts", {})
    return float(np.mean([found[name]["macro"] for name in shifts])) if all(name in found for name in shifts) else None


def worst(record: Mapping[str, Any]) -> float:
    """Score of the run's worst task."""
    return float(min(record["tasks"].values()))


def spread(record: Mapping[str, Any]) -> float:
    """Standard deviation of the scores over tasks."""
    return float(np.std(list(record["tasks"].values())))


def by_seed(records: Mapping[tuple[str, int], Mapping[str, Any]], arm: str) -> dict[int, Mapping[str, Any]]:
    """The records of an arm, by seed in ascending order."""
    return {seed: record for (name, seed), record in sorted(records.items()) if name == arm}


def difference(
    records: Mapping[tuple[str, int], Mapping[str, Any]],
    arm: str,
    against: str,
    *,
    value: Callable[[Mapping[str, Any]], float | None] = macro,
) -> Estimate | None:
    """Paired difference of a value of runs, by default the macro score; None without a seed that both arms have."""
    ours, theirs = by_seed(records, arm), by_seed(records, against)
    pairs = [(value(ours[seed]), value(theirs[seed])) for seed in ours if seed in theirs]
    found = [our - their for our, their in pairs if our is not None and their is not None]
    return estimate(found) if found else None
