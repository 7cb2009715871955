"""Numbers of arms and intervals of their differences. Two arms are compared seed by seed: a pair shares its data order
and initial weights, and what seeds have in common drops out of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    records: Mapping[tuple[str, int], Mapping[str, Any]], arm: str, against: str, *, task: str | None = None
) -> Estimate | None:
    """Paired difference of macro scores, or of one task's; None without a seed that both arms have."""
    ours, theirs = by_seed(records, arm), by_seed(records, against)

    def value(record: Mapping[str, Any]) -> float:
        return macro(record) if task is None else float(record["tasks"][task])

    pairs = [value(ours[seed]) - value(theirs[seed]) for seed in ours if seed in theirs]
    return estimate(pairs) if pairs else None
