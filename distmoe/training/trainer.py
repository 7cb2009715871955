"""The training loop, and nothing else: what happens in which order, on every rank alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from distmoe.data.batch import TaskBatch
from distmoe.data.loader import StepLoader
from distmoe.data.sources.base import Split
from distmoe.engine.config import ScheduleConfig
from distmoe.engine.engine import Engine, StepResult
from distmoe.errors import TrainingError
from distmoe.parallel.watch.whereabouts import BACKWARD, BORDER, FORWARD, UPDATE, Whereabouts
from distmoe.tasks import TaskSet
from distmoe.training.border import agree, refuse_nonfinite
from distmoe.training.checkpoints import Checkpoints
from distmoe.training.config import RunSection
from distmoe.training.evaluate import Evaluation
from distmoe.training.journal import Journal
from distmoe.training.objective import LossBreakdown, Objective
from distmoe.training.schedule import lr_factor
from distmoe.training.state import TrainerState
from distmoe.training.stop_signal import StopSignal
from distmoe.training.structural.alignment import AlignmentTerm

Ended = Literal["Finished", "Stopped early", "Stopped by a signal"]


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains a model until its schedule ends, it stops improving, or somebody asks it to stop.

    Every rank runs :meth:`run`; all decisions depend on values that are equal on all ranks. On trial, nothing is saved
    and nothing stops early: what was trained may be undone.
    """

    engine: Engine
    objective: Objective
    tasks: TaskSet
    loader: StepLoader
    evaluate: Callable[[Split], Evaluation]
    journal: Journal
    checkpoints: Checkpoints
    run_config: RunSection
    schedule: ScheduleConfig
    state: TrainerState
    alignment: AlignmentTerm | None = None
    whereabouts: Whereabouts = field(default_factory=Whereabouts)
    on_trial: bool = False

    def run(self, stop: StopSignal, *, until: int | None = None) -> Ended | None:
        """Trains; a checkpoint of the last step exists afterwards, unless training only paused or is on trial.

        Args:
            stop: Asked at every step border; one rank's signal stops all.
            until: Pause after this step, with its log line written; None is returned then.

        Raises:
            TrainingError: If a loss is not finite and ``run.on_nonfinite`` is ``stop``.
            CheckpointError: If a checkpoint could not be written; from a save beside training, at the next step border.
        """
        state = self.state
        target = self.schedule.num_steps if until is None else min(until, self.schedule.num_steps)
        if state.step < self.schedule.num_steps and self._has_stopped_early:
            self.checkpoints.wait()
            return "Stopped early"  # and was ended before its scores were written
        self.journal.paused()  # what came before, a structural phase for example, was no training
        while state.step < target:
            began = time.perf_counter()
            stopped = self._train_step(stop)
            state.train_seconds += time.perf_counter() - began
            last, paused = state.step == self.schedule.num_steps, state.step == until
            if last or paused or state.step % self.run_config.log_every == 0:
                self.whereabouts.at("logging (all-reduce of sums)", step=state.step)
                self.journal.log(state)
            evaluation = self._evaluate() if self._is_evaluation_due(last) else None
            is_best = state.best.step == state.step
            ended = self._ended(last, stopped)
            due = not paused and self.checkpoints.is_due(state.step, is_best=is_best)
            if (ended or due) and not self.on_trial:
                self.whereabouts.at("saving a checkpoint (gathers)", step=state.step)
                self.checkpoints.save(evaluation)
            if ended:
                self.checkpoints.wait()
                return ended
            self.journal.paused()
        return None if state.step == until else "Finished"

    def _train_step(self, stop: StopSignal) -> bool:
        """One optimizer step; returns whether some rank was asked to stop."""
        self.whereabouts.at("loading data", step=self.state.step)
        factor = lr_factor(self.state.step, self.schedule)
        batches = [batch.to(self.engine.device) for batch in self.loader.next_step()]
        first = self.state.step * len(batches)
        losses = [self._micro_step(batch, first + place) for place, batch in enumerate(batches)]
        self.whereabouts.at(BORDER)
        border = agree(losses, stop=stop.received, save_failed=self.checkpoints.save_failed)
        if border.save_failed:
            self.checkpoints.wait()  # raises on every rank
        self.whereabouts.at(UPDATE)
        if border.finite:
            result = self.engine.step(factor)
        elif self.run_config.on_nonfinite == "stop":
            refuse_nonfinite(self.state.step, losses, batches, self.tasks)
        else:
            self.engine.skip_step()
            result = StepResult(grad_norm=math.inf, skipped=True)
        self._refuse_bad_gradient(result)
        self.state.step += 1
        self.state.skipped_steps += result.skipped
        self.journal.add(losses if border.finite else (), batches, factor, result)
        return border.stop

    def _micro_step(self, batch: TaskBatch, index: int) -> LossBreakdown:
        self.whereabouts.at(FORWARD)
        output = self.engine(batch) if self.alignment is None else self.engine(batch, self.alignment.comparisons(index))
        losses = self.objective(output, batch)
        self.whereabouts.at(BACKWARD)
        self.engine.backward(losses.total)
        self.journal.count(output)
        # The graph would keep every activation of the micro-batch alive until the end of the step.
        return replace(losses, total=losses.total.detach())

    def _refuse_bad_gradient(self, result: StepResult) -> None:
        """A finite loss can have a gradient that is not; in fp16 that is how the loss scale finds its size."""
        if (
            not math.isfinite(result.grad_norm)
            and self.run_config.on_nonfinite == "stop"
            and self.engine.settings.precision != "fp16"
        ):
            raise TrainingError(
                f"the gradient of step {self.state.step} is not finite",
                got=f"gradient norm {result.grad_norm}",
                expected="a finite norm",
                remedy="lower optimizer.lr, raise schedule.warmup, or set run.on_nonfinite=skip; "
                "go on from the last checkpoint with --resume auto",
            )

    def _evaluate(self) -> Evaluation:
        self.whereabouts.at("evaluation (gathers)", step=self.state.step)
        evaluation = self.evaluate("validation")
        is_best = self.state.best.update(evaluation.macro, self.state.step)
        self.journal.evaluated(evaluation, self.state.step, is_best=is_best)
        return evaluation

    @property
    def _has_stopped_early(self) -> bool:
        return self.state.best.should_stop and not self.on_trial

    def _is_evaluation_due(self, last: bool) -> bool:
        every = self.run_config.eval_every
        return last or (every is not None and self.state.step % every == 0)

    def _ended(self, last: bool, stopped: bool) -> Ended | None:
        if last:
            return "Finished"
        if self._has_stopped_early:
            return "Stopped early"
        return "Stopped by a signal" if stopped else None
