"""Whether merges are kept: their tasks' validation losses after recovery, against no merge and against before.

Similarity proposes, a trial decides (specification, section 4.5). There is no gate right after a merge: the loss jumps
also when the merge is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from distmoe.structure.plan import Merge
from distmoe.tasks import TaskSet

Losses = Mapping[str, float]
"""Validation loss by task name."""


@dataclass(frozen=True)
class Verdict:
    """One merge's trial.

    Attributes:
        against_control: Mean over the merge's tasks of loss with / without the merge, after equally many steps.
        against_before: The same against the loss before the trial.
        accepted: Whether neither is above ``1 + tolerance``.
    """

    merge: Merge
    against_control: float
    against_before: float
    accepted: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"merge": self.merge.to_json()}


def judge(
    merges: Sequence[Merge], tasks: TaskSet, *, before: Losses, control: Losses, merged: Losses, tolerance: float
) -> tuple[Verdict, ...]:
    """Judges every merge by its own tasks; a task without validation split has no vote."""

    def ratio(merge: Merge, base: Losses) -> float:
        names = [tasks[task].name for task in merge.result]
        ratios = [merged[name] / max(base[name], 1e-12) for name in names if name in merged]
        return fmean(ratios) if ratios else 1.0

    result = []
    for merge in merges:
        against_control, against_before = ratio(merge, control), ratio(merge, before)
        kept = max(against_control, against_before) <= 1 + tolerance
        result.append(Verdict(merge, against_control, against_before, kept))
    return tuple(result)
