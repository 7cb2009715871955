"""Which examples every host class trains in every step: a pure function of (seed, step), kept as a few counts.

Life of a window of W steps, the same on all ranks:

1. Each host class draws ``W * its examples per step`` tasks from its part of the mixture.
2. Each drawn task gives its next examples (:class:`ExampleOrder`).
3. The class's draws are sorted by length and cut into W steps of neighbouring lengths.
4. One shuffle, common to all classes, orders the steps: all ranks meet short steps, and long ones, together.

Every rank computes all classes: it costs little, and the state is then the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distmoe.data.config import SamplingConfig
from distmoe.data.sampling.mixture import deal_in_turn, draw_tasks
from distmoe.data.sampling.order import ExampleOrder
from distmoe.errors import CheckpointError
from distmoe.log import get_logger
from distmoe.seed import numpy_generator

_logger = get_logger(__name__)
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DrawClass:
    """Tasks that are drawn together, and how many examples of them a step takes."""

    tasks: tuple[int, ...]
    examples_per_step: int


class MixtureSampler:
    """Deals examples to host classes, step by step.

    Args:
        sizes: Training examples of each task.
        lengths: Per task, tokens of each example.
        classes: Disjoint task sets that together hold all tasks.
        weights: Each task's share of the mixture.
        config: Strategy and window.
        seed: The run's seed.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        lengths: Sequence[npt.NDArray[np.int32]],
        *,
        classes: Sequence[DrawClass],
        weights: Sequence[float],
        config: SamplingConfig,
        seed: int,
    ) -> None:
        self._sizes, self._lengths, self._classes, self._config, self._seed = (
            list(sizes),
            lengths,
            tuple(classes),
            config,
            seed,
        )
        self.weights = list(weights)
        self._orders = [ExampleOrder(size, seed=seed, task_id=task) for task, size in enumerate(sizes)]
        self._window, self._step_in_window = 0, 0
        self._drawn = [0] * len(sizes)
        self._turns = [0] * len(self._classes)
        self._plan: list[list[tuple[Rows, Rows]]] = []
        self._drawn_after, self._turns_after = self._drawn, self._turns

    def correction(self, index: int) -> float:
        """Mixture weight over draw rate of the tasks of class ``index``; inside a class, draws follow the mixture.

        With p_t the mixture weight, P the sum of p_t over the class, and n of the step's N examples for the class,
        task t is drawn at rate (p_t / P) * (n / N); so the correction is p_t / rate = P * N / n.
        """
        share = sum(self.weights[task] for task in self._classes[index].tasks)
        total = sum(draw.examples_per_step for draw in self._classes)
        return share * total / self._classes[index].examples_per_step

    def next_step(self) -> list[tuple[Rows, Rows]]:
        """Returns per class the (task ids, example ids) of the next step, ascending in length."""
        if not self._plan:
            self._plan = self._draw_window()
        step = self._plan[self._step_in_window]
        self._step_in_window += 1
        if self._step_in_window == self._config.bucket_window:
            self._window, self._step_in_window, self._plan = self._window + 1, 0, []
            self._drawn, self._turns = self._drawn_after, self._turns_after
        return step

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs, as plain JSON values."""
        return {
            "window": self._window,
            "step_in_window": self._step_in_window,
            "drawn": list(self._drawn),
            "turns": list(self._turns),
            "classes": [[list(draw.tasks), draw.examples_per_step] for draw in self._classes],
            "settings": self._settings(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly where ``state`` was taken, also in the middle of a window.

        With other host classes than then (another placement or batch size), the window that was open is left and the
        next one begins; no example counts as drawn that was not, so up to one window of examples is seen again.

        Raises:
            CheckpointError: If the state belongs to other tasks, another seed or another sampling.
        """
        saved, now = state["settings"], self._settings()
        different = [key for key in now if saved.get(key) != now[key]]
        if different:
            raise CheckpointError(
                "the sampler state belongs to another run",
                got={key: saved.get(key) for key in different},
                expected={key: now[key] for key in different},
                remedy="resume with the same tasks, data, sampling and seed, or start a new run",
            )
        self._plan = []
        self._window, self._step_in_window = state["window"], state["step_in_window"]
        self._drawn, self._turns = list(state["drawn"]), list(state["turns"])
        if state["classes"] != self.state_dict()["classes"]:
            _logger.warning(
                "ranks train other tasks now (ranks, placement, task groups or batch size): the sampler leaves window "
                "%d after %d of %d steps",
                self._window,
                self._step_in_window,
                self._config.bucket_window,
            )
            self._window, self._step_in_window = self._window + 1, 0
            self._turns = [0] * len(self._classes)

    def _settings(self) -> dict[str, Any]:
        return {"sizes": self._sizes, "seed": self._seed, **self._config.model_dump()}

    def _draw_window(self) -> list[list[tuple[Rows, Rows]]]:
        drawn, turns, num_steps = list(self._drawn), list(self._turns), self._config.bucket_window
        steps: list[list[tuple[Rows, Rows]]] = [[] for _ in range(num_steps)]
        for index, draw in enumerate(self._classes):
            tasks = self._draw_tasks(draw, num_steps * draw.examples_per_step, turns[index])
            turns[index] += len(tasks)
            examples = self._draw_examples(tasks, drawn)
            by_length = self._sort(tasks, examples) if num_steps > 1 else np.arange(len(tasks))
            for step, part in zip(steps, by_length.reshape(num_steps, -1), strict=True):
                step.append((tasks[part], examples[part]))
        self._drawn_after, self._turns_after = drawn, turns
        order = numpy_generator(self._seed, "step order", self._window).permutation(num_steps)
        return [steps[place] for place in order]

    def _draw_tasks(self, draw: DrawClass, count: int, turn: int) -> Rows:
        """A class whose tasks have no weight draws nothing; its ranks run placeholders."""
        shares = [self.weights[task] for task in draw.tasks]
        if not sum(shares):
            return np.zeros(0, dtype=np.int64)
        tasks = np.asarray(draw.tasks, dtype=np.int64)
        if self._config.strategy == "round_robin":
            trained = tasks[np.flatnonzero(shares)]
            return trained[deal_in_turn(len(trained), count, turn)]
        rng = numpy_generator(self._seed, "tasks", self._window, draw.tasks)
        return tasks[draw_tasks(shares, count, rng)]

    def _draw_examples(self, tasks: Rows, drawn: list[int]) -> Rows:
        """Gives each drawn task its next examples, and counts them in ``drawn``."""
        examples = np.zeros_like(tasks)
        for task in np.unique(tasks).tolist():
            places = np.flatnonzero(tasks == task)
            examples[places] = self._orders[task].take(drawn[task], len(places))
            drawn[task] += len(places)
        return examples

    def _sort(self, tasks: Rows, examples: Rows) -> Rows:
        lengths = np.zeros(len(tasks), dtype=np.int64)
        for task in np.unique(tasks).tolist():
            lengths[tasks == task] = self._lengths[task][examples[tasks == task]]
        return np.argsort(lengths, kind="stable")
