"""Whether merges are kept: their tasks' validation losses with the merges, against training on without them.

Similarity proposes, a trial decides (specification, section 4.5). All arms start from one checkpoint and take equally
many steps. There is no gate right after a merge: the loss jumps also when the merge is right. Nor is the loss before
the trial a measure: a task with few examples over-fits during the trial, merged or not, and only the control tells the
two apart; the record says how far each arm went.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import sqrt
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmoe.structure.plan import Merge
from distmoe.tasks import TaskSet
from distmoe.training.structural.state import Pending

Losses = Mapping[str, NDArray[np.float64]]
"""Validation loss of every example, by task name."""


@dataclass(frozen=True)
class Cost:
    """What one arm loses against another.

    Attributes:
        ratio: Mean over tasks of the ratio of their losses.
        noise: Its standard error over validation examples, from their paired differences.
    """

    ratio: float
    noise: float


@dataclass(frozen=True)
class Rule:
    """When a cost is too high.

    Attributes:
        tolerance: Share of the loss that a merge may cost against none. It is the price of the parameters that a merge
            saves, so it does not count between two merges.
        confidence: Standard errors that are forgiven; with 1.64, one in twenty merges that change nothing is undone.
    """

    tolerance: float
    confidence: float

    def allows(self, cost: Cost) -> bool:
        return cost.ratio - 1 <= self.tolerance + self.confidence * cost.noise


@dataclass(frozen=True)
class Verdict:
    """One merge's trial, over the tasks of the merge.

    Attributes:
        merge: What was tried.
        against_control: With the merge against without, after equally many steps.
        against_rival: Of a merge of a whole frontier: against the arm with its task groups; None if there was none.
        against_before: Ratio to the loss before the trial; for the record.
        accepted: Whether the merge is kept.
    """

    merge: Merge
    against_control: Cost
    against_rival: Cost | None
    against_before: float
    accepted: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"merge": self.merge.to_json()}


@dataclass(frozen=True)
class Outcome:
    """Validation losses around a trial.

    Attributes:
        before: At the checkpoint from which all arms started.
        control: After the steps without merges.
        arms: After the steps with each plan.
    """

    before: Losses
    control: Losses
    arms: tuple[Losses, ...]


def judge(pending: Pending, tasks: TaskSet, outcome: Outcome, rule: Rule) -> tuple[Verdict, ...]:
    """Judges every merge by its own tasks; a task without validation split has no vote.

    Task groups are kept if they do not cost more than training without them. The merge of a whole frontier must in
    addition cost no more than its task groups, noise forgiven and no tolerance: sharing with everybody is often better
    than sharing with nobody and still worse than sharing with the right ones.

    Args:
        pending: Plans and the proposals they are made of.
        tasks: Names of the tasks.
        outcome: Losses of all arms; one per plan.
        rule: Of the run.
    """
    arm_of = {merge: losses for plan, losses in zip(pending.plans, outcome.arms, strict=True) for merge in plan.merges}
    fine = outcome.arms[-1]
    verdicts: list[Verdict] = []
    for proposal in pending.proposals:
        whole = proposal.whole
        wins = False
        if whole is not None:
            rival = compare_losses(whole, tasks, arm_of[whole], fine) if proposal.merges else None
            found = _verdict(whole, tasks, outcome, arm_of[whole], rule, rival=rival)
            wins = found.accepted
            verdicts.append(found)
        for merge in proposal.merges:
            found = _verdict(merge, tasks, outcome, arm_of[merge], rule)
            verdicts.append(replace(found, accepted=found.accepted and not wins))
    return tuple(verdicts)


def compare_losses(merge: Merge, tasks: TaskSet, losses: Losses, base: Losses) -> Cost:
    """What the merge's tasks lose in one arm against another, whose losses are taken as given."""
    names = [tasks[task].name for task in merge.result if tasks[task].name in losses]
    if not names:
        return Cost(1.0, 0.0)
    ratios, variances = [], []
    for name in names:
        scale, change = max(float(base[name].mean()), 1e-12), losses[name] - base[name]
        ratios.append(1 + float(change.mean()) / scale)
        variances.append(float(change.var(ddof=1)) / len(change) / scale**2 if len(change) > 1 else 0.0)
    return Cost(fmean(ratios), sqrt(sum(variances)) / len(names))


def _verdict(
    merge: Merge, tasks: TaskSet, outcome: Outcome, losses: Losses, rule: Rule, *, rival: Cost | None = None
) -> Verdict:
    control = compare_losses(merge, tasks, losses, outcome.control)
    kept = rule.allows(control) and (rival is None or replace(rule, tolerance=0.0).allows(rival))
    return Verdict(merge, control, rival, compare_losses(merge, tasks, losses, outcome.before).ratio, kept)
