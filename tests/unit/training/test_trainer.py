"""The loop's decisions, on a fake engine that only counts."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distmoe.engine.config import ScheduleConfig
from distmoe.engine.engine import StepResult
from distmoe.errors import CheckpointError, TrainingError
from distmoe.tasks import TaskGrouping
from distmoe.training.config import RunSection
from distmoe.training.evaluate import Evaluation
from distmoe.training.objective import Objective
from distmoe.training.selection import BestScore
from distmoe.training.state import TrainerState
from distmoe.training.stop_signal import StopSignal
from distmoe.training.trainer import Trainer
from tests.unit.training.samples import TASKS, batch, output


class FakeEngine:
    device = torch.device("cpu")
    settings = SimpleNamespace(precision="fp32")

    def __init__(self, grad_norm: float = 1.0) -> None:
        self.events: list[str] = []
        self.factors: list[float] = []
        self.grad_norm = grad_norm

    def __call__(self, rows: Any) -> Any:
        return output(torch.tensor([[rows.labels_B[0].item(), -math.inf, -math.inf]]))

    def backward(self, loss: torch.Tensor) -> None:
        self.events.append("backward")

    def step(self, factor: float) -> StepResult:
        self.events.append("step")
        self.factors.append(factor)
        return StepResult(self.grad_norm, skipped=False)

    def skip_step(self) -> None:
        self.events.append("skip")


class Recorder:
    """Journal and checkpoints at once: remembers what the trainer tells them."""

    def __init__(self, every: int | None = None) -> None:
        self.every, self.logged, self.saved, self.added = every, [], [], []
        self.save_failed, self.waited = False, 0
        self.events: list[str] = []

    def count(self, output: Any) -> None: ...
    def paused(self) -> None:
        self.events.append("paused")

    def add(self, losses: Any, batches: Any, factor: float, result: StepResult) -> None:
        self.added.append(len(losses))
        self.events.append("step")

    def log(self, state: TrainerState) -> None:
        self.logged.append(state.step)

    def evaluated(self, evaluation: Evaluation, step: int, *, is_best: bool) -> None: ...

    def is_due(self, step: int, *, is_best: bool) -> bool:
        return is_best or (self.every is not None and step % self.every == 0)

    def save(self, evaluation: Evaluation | None) -> None:
        self.saved.append((self.logged[-1] if self.logged else 0, evaluation.macro if evaluation else None))

    def wait(self) -> None:
        self.waited += 1
        if self.save_failed:
            raise CheckpointError("step 1 cannot be saved", got="no room", expected="room", remedy="make room")


def trainer(
    *,
    values: list[float],
    scores: list[float] = (),
    micro: int = 1,
    every: int | None = None,
    engine: Any = None,
    **run: Any,
) -> tuple[Trainer, Recorder, FakeEngine]:
    """One row of the regression per micro-batch, with prediction and label ``values[step]``."""
    recorder, engine = Recorder(every), engine or FakeEngine()
    steps, remaining = iter(values), iter(scores)

    def next_step() -> list[Any]:
        value = next(steps)
        return [batch([1], [value]) for _ in range(micro)]

    config = RunSection(**({"log_every": 1, "eval_every": None} | run))
    made = Trainer(
        engine=engine,
        objective=Objective(TASKS, TaskGrouping(3, ()), weights=None),
        tasks=TASKS,
        loader=SimpleNamespace(next_step=next_step),
        evaluate=lambda split: Evaluation(split, (), next(remaining, 0.0), 0.0),
        journal=recorder,
        checkpoints=recorder,
        run_config=config,
        schedule=ScheduleConfig(num_steps=len(values), warmup=0.0),
        state=TrainerState(best=BestScore(patience=config.early_stop)),
    )
    return made, recorder, engine


def test_micro_batches_come_before_one_step_and_the_schedule_reaches_the_engine() -> None:
    made, _, engine = trainer(values=[0.0, 0.0], micro=2)
    assert made.run(StopSignal()) == "Finished"
    assert engine.events == ["backward", "backward", "step"] * 2
    assert engine.factors == [1.0, 0.5]


def test_logs_evaluations_and_saves_come_at_their_steps_and_at_the_end() -> None:
    made, recorder, _ = trainer(values=[0.0] * 7, scores=[0.5, 0.4, 0.6], log_every=3, eval_every=3, every=2)
    made.run(StopSignal())
    assert recorder.logged == [3, 6, 7]
    # Saved: step 2 (due), 3 (best), 4 (due), 6 (due), 7 (best, last); a score only where that very step was evaluated.
    assert [score for _, score in recorder.saved] == [None, 0.5, None, 0.4, 0.6]
    assert (made.state.best.score, made.state.best.step) == (0.6, 7)


def test_what_lies_between_two_calls_is_no_part_of_the_next_step() -> None:
    made, recorder, _ = trainer(values=[0.0] * 3)
    assert made.run(StopSignal(), until=1) is None
    assert made.run(StopSignal(), until=2) is None
    assert recorder.events == ["paused", "step", "paused"] * 2


def test_training_stops_early_with_a_checkpoint() -> None:
    made, recorder, _ = trainer(values=[0.0] * 9, scores=[0.5, 0.4, 0.3, 0.2], eval_every=1, early_stop=2)
    assert made.run(StopSignal()) == "Stopped early"
    assert made.state.step == 3
    assert recorder.saved[-1] == (3, 0.3)


@pytest.mark.parametrize(
    ("step", "on_trial", "ended", "trained"),
    [(3, False, "Stopped early", 0), (3, True, "Finished", 6), (9, False, "Finished", 0)],
)
def test_a_run_that_had_stopped_early_takes_no_step_more_when_it_resumes(
    step: int, on_trial: bool, ended: str, trained: int
) -> None:
    made, recorder, engine = trainer(values=[0.0] * 9, early_stop=2)
    made = replace(made, on_trial=on_trial)
    made.state.step = step
    made.state.best.load_state_dict({"score": 0.5, "step": 1, "evaluations_without_improvement": 2})
    assert made.run(StopSignal()) == ended
    assert engine.events.count("step") == trained
    assert recorder.waited == (ended == "Stopped early" or trained > 0)


def test_a_signal_ends_training_after_the_step_with_a_checkpoint() -> None:
    made, recorder, _ = trainer(values=[0.0] * 9)
    stop = StopSignal()
    stop.name = "SIGTERM"
    assert made.run(stop) == "Stopped by a signal"
    assert made.state.step == 1
    assert (recorder.saved, recorder.waited) == ([(1, None)], 1)


def test_a_save_that_failed_beside_training_ends_it_before_the_next_update() -> None:
    made, recorder, engine = trainer(values=[0.0] * 9)
    recorder.save_failed = True
    with pytest.raises(CheckpointError, match=r"(?s)step 1 cannot be saved.*no room"):
        made.run(StopSignal())
    assert engine.events == ["backward"]


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    made, recorder, engine = trainer(values=[0.0, math.nan, 0.0])
    with pytest.raises(TrainingError, match=r"(?s)the loss of step 1 is not finite.*size#0"):
        made.run(StopSignal())
    assert engine.events.count("step") == 1
    assert recorder.saved == []


def test_with_skip_the_step_is_left_out_and_counted() -> None:
    made, recorder, engine = trainer(values=[0.0, math.nan, 0.0], on_nonfinite="skip")
    assert made.run(StopSignal()) == "Finished"
    assert [event for event in engine.events if event != "backward"] == ["step", "skip", "step"]
    assert (made.state.step, made.state.skipped_steps) == (3, 1)
    assert recorder.added == [1, 0, 1]


@pytest.mark.parametrize(("precision", "stops"), [("fp32", True), ("bf16", True), ("fp16", False)])
def test_a_gradient_that_is_not_finite_stops_except_in_fp16(precision: str, stops: bool) -> None:
    engine = FakeEngine(grad_norm=math.inf)
    engine.settings = SimpleNamespace(precision=precision)
    made, _, _ = trainer(values=[0.0], engine=engine)
    if stops:
        with pytest.raises(TrainingError, match="the gradient of step 0 is not finite"):
            made.run(StopSignal())
    else:
        assert made.run(StopSignal()) == "Finished"
