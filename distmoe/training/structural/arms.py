"""The arms of a trial: from one checkpoint, so many steps without merges and so many with each plan.

With ``structure.learn.restart`` all arms start at the run's first step and end where the task phase has ended: that
phase is the arm without merges.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distmoe.structure.plan import MergePlan
from distmoe.training.evaluate import Evaluation
from distmoe.training.journal import Outlets
from distmoe.training.monitor import Buffer, Monitor
from distmoe.training.progress import Progress
from distmoe.training.stop_signal import StopSignal
from distmoe.training.structural.state import Pending
from distmoe.training.structural.trial import Outcome

if TYPE_CHECKING:
    from distmoe.training.structural.makings import Makings
    from distmoe.training.trainer import Ended
    from distmoe.training.workshop import Run, Workshop


@dataclass(frozen=True)
class Tried:
    """What a trial leaves behind.

    Attributes:
        run: Of the arm that was trained last: the one with the last plan.
        lines: Its log, which counts if training goes on behind it.
        outcome: Errors of all arms; None without a trial, or if training was stopped in it.
        stopped: How training was stopped, if it was.
    """

    run: Run
    lines: Buffer
    outcome: Outcome | None = None
    stopped: Ended | None = None


def try_plans(
    workshop: Workshop,
    run: Run,
    stop: StopSignal,
    *,
    pending: Pending,
    makings: Makings,
    checkpoint: Path | None,
    before: Evaluation,
    num_steps: int,
    with_trial: bool,
) -> Tried:
    """Trains all arms. Collective.

    Args:
        workshop: Builds their runs.
        run: Dismantled here.
        stop: Asked at every step border; a stopped trial is tried again from its checkpoint.
        pending: The plans.
        makings: What their joined layers are made with.
        checkpoint: Where all arms start; None: at the run's first step.
        before: Validation at the structural phase.
        num_steps: Of each arm.
        with_trial: False: the last plan's merges are made, and no other arm is trained.
    """
    plans = pending.plans if with_trial else pending.plans[-1:]
    errors = []
    if checkpoint is None:
        errors.append(before.example_errors)
    elif with_trial:
        plans = (pending.keep(()), *plans)
    for plan in plans:
        run, lines = _start(workshop, run, plan, makings, checkpoint)
        if num_steps:
            stopped = run.trainer.run(stop, until=run.state.step + num_steps)
            if stopped is not None:
                return Tried(run, lines, stopped=stopped)
            errors.append(run.evaluate("validation").example_errors)
    outcome = Outcome(before.example_errors, errors[0], tuple(errors[1:])) if with_trial else None
    return Tried(run, lines, outcome)


def _start(
    workshop: Workshop, run: Run, plan: MergePlan, makings: Makings, checkpoint: Path | None
) -> tuple[Run, Buffer]:
    """The run of an arm, and where its lines wait."""
    lines = Buffer()
    silent = Outlets(Monitor((lines,) if workshop.env.rank == 0 else ()), Progress(0, rank=-1))
    run = workshop.rebuild(run, merges=plan, makings=makings, checkpoint=checkpoint, outlets=silent, on_trial=True)
    return run, lines
