"""Whether merges are kept: their tasks' validation losses with the merges, against training on without them.

Similarity proposes, a trial decides (specification, section 4.5). Both arms start from one checkpoint and take equally
many steps. There is no gate right after a merge: the loss jumps also when the merge is right. Nor is the loss before the
trial a measure: a task with few examples over-fits during the trial, merged or not, and only the control tells the two
apart; the record says how far each arm went.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmoe.structure.plan import Merge
from distmoe.tasks import TaskSet

Losses = Mapping[str, NDArray[np.float64]]
"""Validation loss of every example, by task name."""


@dataclass(frozen=True)
class Verdict:
    """One merge's trial.

    Attributes:
        against_control: Mean over the merge's tasks of loss with / without the merge, after equally many steps.
        noise: Its standard error over validation examples, from their paired differences.
        against_before: The same mean against the loss before the trial; for the record.
        accepted: Whether the merge is kept.
    """

    merge: Merge
    against_control: float
    noise: float
    against_before: float
    accepted: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"merge": self.merge.to_json()}


def judge(
    merges: Sequence[Merge],
    tasks: TaskSet,
    *,
    before: Losses,
    control: Losses,
    merged: Losses,
    tolerance: float,
    confidence: float,
) -> tuple[Verdict, ...]:
    """Judges every merge by its own tasks; a task without validation split has no vote.

    A merge is undone if it costs more than ``tolerance`` beyond the noise: if ``against_control - 1`` is above
    ``tolerance + confidence * noise``.

    Args:
        merges: On trial, all in one arm.
        tasks: Names of the tasks.
        before: Losses before the trial.
        control: Losses after the steps without the merges.
        merged: Losses after the steps with them.
        tolerance: Share of the loss that a merge may cost.
        confidence: Standard errors; 1.64 undoes one in twenty merges that change nothing.
    """
    result = []
    for merge in merges:
        names = [tasks[task].name for task in merge.result if tasks[task].name in merged]
        against_control, noise = _ratio(names, merged, control)
        against_before, _ = _ratio(names, merged, before)
        kept = against_control - 1 <= tolerance + confidence * noise
        result.append(Verdict(merge, against_control, noise, against_before, kept))
    return tuple(result)


def _ratio(names: Sequence[str], losses: Losses, base: Losses) -> tuple[float, float]:
    """Mean over tasks of the ratio of mean losses, and its standard error over examples, with the base taken as given."""
    if not names:
        return 1.0, 0.0
    ratios, variances = [], []
    for name in names:
        scale, change = max(float(base[name].mean()), 1e-12), losses[name] - base[name]
        ratios.append(1 + float(change.mean()) / scale)
        variances.append(float(change.var(ddof=1)) / len(change) / scale**2 if len(change) > 1 else 0.0)
    return fmean(ratios), sqrt(sum(variances)) / len(names)
