"""Whether merges are kept: their tasks' validation errors with the merges, against training on without them.

Similarity proposes, a trial decides (specification, section 4.5). All arms start from one checkpoint and take equally
many steps. There is no gate right after a merge: errors jump also when the merge is right. Nor are the errors before
the trial a measure: a task with few examples over-fits during the trial, merged or not, and only the control tells the
two apart; the record says how far each arm went.

Errors, not losses: a cross-entropy rises when answers become surer, before they become worse, and does so first where
tasks train apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distmoe.structure.plan import Merge, tasks_of
from distmoe.tasks import TaskSet
from distmoe.training.structural.state import Pending

Errors = Mapping[str, NDArray[np.float64]]
"""Relative error of every validation example (:func:`~distmoe.training.metrics.relative_errors`), by task name."""


@dataclass(frozen=True)
class Cost:
    """How much more tasks err in one arm than in another.

    Attributes:
        change: Mean over tasks of the change of their relative errors.
        noise: Its standard error over validation examples, from their paired differences.
    """

    change: float
    noise: float


@dataclass(frozen=True)
class Rule:
    """When a cost is too high.

    Attributes:
        tolerance: Relative error that a merge may cost against none. It is the price of the parameters that a merge
            saves, so it does not count between two merges.
        confidence: Standard errors that are forgiven; with 2, one in forty merges that change nothing is undone.
    """

    tolerance: float
    confidence: float

    def allows(self, cost: Cost) -> bool:
        """Whether a merge costs no more than noise."""
        return cost.change <= self.tolerance + self.confidence * cost.noise

    def is_free(self, cost: Cost) -> bool:
        """Whether a merge costs nothing, noise or not."""
        return cost.change <= self.tolerance

    def equals(self, rival: Cost) -> bool:
        """Whether one merge is as good as another but for noise."""
        return rival.change <= self.confidence * rival.noise


@dataclass(frozen=True)
class Verdict:
    """One merge's trial, over the tasks of the merge.

    Attributes:
        merge: What was tried.
        against_control: With the merge against without, after equally many steps.
        against_rival: Of a merge of a whole frontier: against the arm with its task groups; None if there was none.
        against_before: Change since the trial began; for the record.
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
    """Validation errors around a trial.

    Attributes:
        before: At the checkpoint from which all arms started.
        control: After the steps without merges.
        arms: After the steps with each plan.
    """

    before: Errors
    control: Errors
    arms: tuple[Errors, ...]


def judge(pending: Pending, tasks: TaskSet, outcome: Outcome, rule: Rule) -> tuple[Verdict, ...]:
    """Judges every merge by its own tasks, and the proposed task groups together; a task without validation split has
    no vote.

    A task group is kept if it costs no more than noise. One task group's noise hides a lot: if all of them together
    cost more than theirs, only those are kept that cost nothing. The merge of a whole frontier must cost no more than
    noise against training without it and, no tolerance, against its task groups: sharing with everybody is often
    better than sharing with nobody and still worse than sharing with the right ones.

    Args:
        pending: Plans and the proposals they are made of.
        tasks: Names of the tasks.
        outcome: Errors of all arms; one per plan.
        rule: Of the run.
    """
    arm_of = {merge: errors for plan, errors in zip(pending.plans, outcome.arms, strict=True) for merge in plan.merges}
    fine = outcome.arms[-1]
    proposed = [merge for proposal in pending.proposals for merge in proposal.merges]
    together = rule.allows(compare(tasks_of(merge.result for merge in proposed), tasks, fine, outcome.control))
    verdicts: list[Verdict] = []
    for proposal in pending.proposals:
        whole = proposal.whole
        wins = False
        if whole is not None:
            arm = arm_of[whole]
            control = compare(whole.result, tasks, arm, outcome.control)
            rival = compare(whole.result, tasks, arm, fine) if proposal.merges else None
            wins = rule.allows(control) and (rival is None or rule.equals(rival))
            verdicts.append(Verdict(whole, control, rival, _since(outcome, whole, tasks, arm), wins))
        for merge in proposal.merges:
            control = compare(merge.result, tasks, fine, outcome.control)
            accepted = not wins and (rule.allows(control) if together else rule.is_free(control))
            verdicts.append(Verdict(merge, control, None, _since(outcome, merge, tasks, fine), accepted))
    return tuple(verdicts)


def compare(members: Sequence[int], tasks: TaskSet, errors: Errors, base: Errors) -> Cost:
    """How much more tasks err in one arm than in another.

    Args:
        members: The tasks.
        tasks: Their names.
        errors: Of the one arm.
        base: Of the other, for the same examples.
    """
    names = [tasks[task].name for task in members if tasks[task].name in errors]
    if not names:
        return Cost(0.0, 0.0)
    changes = [errors[name] - base[name] for name in names]
    variances = [float(change.var(ddof=1)) / len(change) if len(change) > 1 else 0.0 for change in changes]
    return Cost(fmean(float(change.mean()) for change in changes), sqrt(sum(variances)) / len(names))


def _since(outcome: Outcome, merge: Merge, tasks: TaskSet, arm: Errors) -> float:
    return compare(merge.result, tasks, arm, outcome.before).change
