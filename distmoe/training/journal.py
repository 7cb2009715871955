"""Collects what happens in steps and tells the monitor and the person who watches.

Between two log lines everything stays on the device; :meth:`Journal.log` reads it, with two small all-reduces.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distmoe.data.accounts import SampleAccounts
from distmoe.data.batch import TaskBatch
from distmoe.engine.engine import StepResult
from distmoe.models.output import ModelOutput
from distmoe.moe.statistics import LayerStatistics, RoutingStatistics
from distmoe.parallel.traffic import TrafficCounter
from distmoe.tasks import TaskSet
from distmoe.training.evaluate import Evaluation, TaskScore
from distmoe.training.monitor import Monitor
from distmoe.training.objective import LossBreakdown
from distmoe.training.progress import Progress
from distmoe.training.state import TrainerState
from distmoe.training.window import LossWindow


@dataclass(frozen=True)
class Outlets:
    """Where a run's numbers go: to files, and to the person who watches."""

    monitor: Monitor
    progress: Progress


class Journal:
    """Window sums, routing statistics, monitor and progress of one run.

    Args:
        tasks: Names for the log.
        routed_layers: Model layer of each routed layer.
        window: Loss sums.
        statistics: Routing counters; ``None`` for a dense model.
        all_reduce: As for the statistics; ``None`` on one process.
        monitor: Where lines go.
        progress: What the person sees.
        lr: Peak learning rate.
        rank: Data rank of this process.
        traffic: What this rank's all-to-alls send, per routed layer.
        hosts: Per routed layer, the ranks that host the same task groups as this one.
    """

    def __init__(
        self,
        *,
        tasks: TaskSet,
        routed_layers: Sequence[int],
        window: LossWindow,
        statistics: RoutingStatistics | None,
        all_reduce: Callable[[Tensor], Tensor] | None,
        monitor: Monitor,
        progress: Progress,
        lr: float,
        rank: int = 0,
        traffic: Sequence[TrafficCounter] = (),
        hosts: Sequence[Collection[int]] = (),
    ) -> None:
        assert len(hosts) == len(traffic), "one set of hosts per counter"
        self._tasks, self._layers, self._lr, self._rank = tasks, tuple(routed_layers), lr, rank
        self.window, self.statistics = window, statistics
        self._all_reduce, self._traffic, self._hosts = all_reduce, tuple(traffic), tuple(hosts)
        self._monitor, self._progress = monitor, progress
        self._last = (0.0, 0.0)  # learning rate and gradient norm of the last step
        self._clock = _Clock()
        self.accounts: SampleAccounts | None = None  # of the loader, which is built later

    def count(self, output: ModelOutput) -> None:
        """Adds a forward pass to the routing statistics."""
        if self.statistics is not None:
            dropped = [routing.dropped for routing in output.routings]
            self.statistics.update(output.routings, output.context, dropped=dropped)

    def add(
        self, losses: Sequence[LossBreakdown], batches: Sequence[TaskBatch], factor: float, result: StepResult
    ) -> None:
        """Adds one optimizer step; ``losses`` is empty for a skipped one."""
        for one, batch in zip(losses, batches, strict=False):
            self.window.add(one, num_tokens=batch.token_index_T.shape[0])
        outside = [counter.bytes_outside(ranks) for counter, ranks in zip(self._traffic, self._hosts, strict=True)]
        self.window.count([counter.read().bytes for counter in self._traffic] + outside)
        self._reset_traffic()
        self._last = (self._lr * factor, result.grad_norm)
        self._clock.step_ended()
        self._progress.advance()

    def log(self, state: TrainerState) -> None:
        """Writes the line of a window. Collective."""
        summary = self.window.summary()
        record: dict[str, Any] = {"step": state.step}
        seconds = self._clock.restart()
        lr, grad_norm = self._last
        if summary is not None:
            speed = summary.tokens / seconds
            record |= {
                "loss": summary.loss,
                "task_loss": summary.task_loss,
                "lr": lr,
                "grad_norm": grad_norm,
                "tokens_per_second": round(speed, 1),
                "skipped_steps": state.skipped_steps,
                "auxiliary": summary.auxiliary,
            }
            record["tasks"] = {
                spec.name: {"loss": loss, "examples": count}
                for spec, loss, count in zip(self._tasks, summary.task_losses, summary.examples, strict=True)
            }
            self._progress.log(state.step, loss=summary.loss, lr=lr, tokens_per_second=speed)
        else:
            record |= {"skipped_steps": state.skipped_steps}
            self._progress.say(
                f"step {state.step}: every step since the last line was skipped, its loss was not finite"
            )
        if self.statistics is not None:
            layers = self.statistics.read(self._all_reduce)
            self.statistics.clear()
            sent = summary.counters if summary is not None else (0,) * (2 * len(layers))
            record["routing"] = {
                f"layer_{number}": self._routing(layer, bytes_sent, bytes_outside)
                for number, layer, bytes_sent, bytes_outside in zip(
                    self._layers, layers, sent[: len(layers)], sent[len(layers) :], strict=True
                )
            }
        if self.accounts is not None:
            record["samples"] = self.accounts.to_json(self._tasks.names)
        self._monitor.write(record)

    def evaluated(self, evaluation: Evaluation, step: int, *, is_best: bool, final: bool = False) -> None:
        """Writes an evaluation's line and says it."""
        self._monitor.write({"step": step, "evaluation": evaluation.to_json()} | ({"final": True} if final else {}))
        scores = "  ".join(_shown(row) for row in evaluation.tasks)
        mark = " (best)" if is_best else ""
        self._progress.say(f"{evaluation.split} at step {step}: macro {evaluation.macro:.4f}{mark}  {scores}")

    def restructured(self, record: dict[str, Any], step: int) -> None:
        """Writes the line of a structural phase."""
        self._monitor.write({"step": step, "structure": record})

    def paused(self) -> None:
        """What happened since the last step was not training: its time and its bytes do not count."""
        self._clock.pause_ended()
        self._reset_traffic()

    def say(self, text: str) -> None:
        self._progress.say(text)

    def state_dict(self) -> dict[str, Any]:
        """What the unfinished window holds, over all ranks; JSON values. Collective."""
        routing = None if self.statistics is None else self.statistics.state_dict(self._all_reduce)
        return {"window": self.window.state_dict(), "routing": routing, "seconds": self._clock.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.window.load_state_dict(state["window"])
        self._clock.go_on(state.get("seconds", 0.0))  # older checkpoints lack it
        if self.statistics is not None:
            self.statistics.load_state_dict(state["routing"], empty=self._rank != 0)

    @property
    def outlets(self) -> Outlets:
        """Where lines go."""
        return Outlets(self._monitor, self._progress)

    def report_to(self, outlets: Outlets) -> None:
        """Sends the lines from here on somewhere else."""
        self._monitor, self._progress = outlets.monitor, outlets.progress

    def close(self) -> None:
        self._progress.close()
        self._monitor.close()

    def _reset_traffic(self) -> None:
        for counter in self._traffic:
            counter.reset()

    def _routing(self, layer: LayerStatistics, bytes_sent: int, bytes_outside: int) -> dict[str, Any]:
        return {
            "load": list(layer.rows),
            "tasks": {spec.name: list(rows) for spec, rows in zip(self._tasks, layer.rows_by_task, strict=True)},
            "bytes": bytes_sent,
            "bytes_between_task_groups": bytes_outside,
            "dropped": layer.dropped,
            "drop_rate_at_1_25": layer.drop_rate_at_1_25,
            "entropy": layer.mean_entropy,
            "load_variation": layer.load_variation,
            "max_share": layer.max_share,
        }


class _Clock:
    """Seconds of training since the last restart, without evaluations and saves."""

    def __init__(self) -> None:
        self.go_on(0.0)

    def go_on(self, seconds: float) -> None:
        self._mark, self.seconds = time.perf_counter(), seconds

    def step_ended(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._mark
        self._mark = now

    def pause_ended(self) -> None:
        self._mark = time.perf_counter()

    def restart(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return max(seconds, 1e-9)


def _shown(row: TaskScore) -> str:
    perplexity = "" if row.perplexity is None else f" (perplexity {row.perplexity:.2f})"
    return f"{row.task} {row.score:.3f}{perplexity}"
