"""Scores a split: all ranks together, every example exactly once.

Collectives: the model's own, in the same number on each rank, because the loader gives every rank the same number of
batches; then one gather of sizes and one of rows at the end. Tasks that are scored by text add generation
(:mod:`distmoe.training.answers`). Dropout and router noise are off and no random generator advances, so training goes
on as if no evaluation had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup

from distmoe.data.batch import TaskBatch
from distmoe.models.output import TokenOutput
from distmoe.tasks import TaskSet, TaskSpec
from distmoe.training.agreement import is_distributed
from distmoe.training.answers import Answers
from distmoe.training.example_losses import by_row, predictions, regression_mask, row_losses, targets
from distmoe.training.metrics import macro, relative_errors, score, score_tokens
from distmoe.training.monitor import finite

# task, example, prediction, label, loss; of a task that predicts tokens: right tokens, target tokens, sum of losses
_COLUMNS = 5
# Perplexities beyond exp(100) mean nothing.
_LARGEST_LOSS = 100.0


class Evaluable(Protocol):
    """What evaluation needs of the engine."""

    @property
    def device(self) -> torch.device: ...

    def __call__(self, *inputs: Any) -> Any: ...

    def eval_mode(self) -> None: ...

    def train_mode(self) -> None: ...


@contextmanager
def evaluating(engine: Evaluable) -> Iterator[None]:
    """Dropout and router noise are off inside, and no gradient is kept; in training mode again afterwards."""
    engine.eval_mode()
    try:
        with torch.no_grad():
            yield
    finally:
        engine.train_mode()


@dataclass(frozen=True)
class TaskScore:
    """One task on one split; ``loss`` is the mean cross-entropy (of examples or target tokens) or squared error."""

    task: str
    metric: str
    score: float
    loss: float
    num_examples: int
    is_per_token: bool = False

    @property
    def perplexity(self) -> float | None:
        """Of the target tokens; None where answers are no tokens."""
        return math.exp(min(self.loss, _LARGEST_LOSS)) if self.is_per_token else None

    def to_json(self) -> dict[str, Any]:
        row = {"metric": self.metric, "score": self.score, "loss": self.loss, "examples": self.num_examples}
        return finite(row if self.perplexity is None else row | {"perplexity": self.perplexity})


@dataclass(frozen=True)
class Evaluation:
    """All tasks on one split.

    Attributes:
        split: ``validation``, ``test``, or a test split under shift, ``test~noise_0.1``.
        tasks: In the order of the task set; tasks without this split are left out.
        macro: Mean of the scores.
        seconds: Wall time.
        example_errors: By task name, :func:`~distmoe.training.metrics.relative_errors` in the order of the split; not
            of tasks whose answers are tokens.
    """

    split: str
    tasks: tuple[TaskScore, ...]
    macro: float
    seconds: float
    example_errors: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "macro": self.macro,
            "seconds": round(self.seconds, 3),
            "tasks": {row.task: row.to_json() for row in self.tasks},
        }


def evaluate(
    engine: Evaluable,
    batches: Iterable[TaskBatch],
    *,
    split: str,
    tasks: TaskSet,
    sizes: tuple[int, ...],
    answers: Answers | None = None,
    process_group: ProcessGroup | None = None,
) -> Evaluation:
    """Runs the model over a split and scores it; collective, equal result on all ranks.

    Args:
        engine: Left in training mode.
        batches: This rank's share; as many batches as on every other rank.
        split: Its name, for the log.
        tasks: The run's tasks.
        sizes: Examples of the split per task id; 0 where a task has no such split.
        answers: Generates what tasks that are scored by text need; None where there is no such task.
        process_group: Ranks that see different batches; None: all.
    """
    began = time.monotonic()
    regression_N = regression_mask(tasks, engine.device)
    chunks = []
    with evaluating(engine):
        for host_batch in batches:
            batch = host_batch.to(engine.device)
            chunks.append(_rows(engine, batch, regression_N))
            if answers is not None:
                answers.add(batch)
    own = torch.cat(chunks) if chunks else torch.zeros(0, _COLUMNS, dtype=torch.float64, device=engine.device)
    rows = gather_rows(own, process_group).cpu().numpy()
    _check_complete(rows, sizes, split)
    by_text = {} if answers is None else answers.scores()
    # Sorted by example, so that float sums do not depend on how the examples were dealt to ranks.
    by_task = {task: own[np.argsort(own[:, 1])] for task in range(len(tasks)) if len(own := rows[rows[:, 0] == task])}
    results = tuple(_score_task(tasks[task], own, by_text.get(task)) for task, own in by_task.items())
    errors = {
        tasks[task].name: relative_errors(tasks[task], own[:, 2], own[:, 3])
        for task, own in by_task.items()
        if not tasks[task].predicts_tokens
    }
    return Evaluation(split, results, macro(row.score for row in results), time.monotonic() - began, errors)


def gather_rows(rows_RC: Tensor, process_group: ProcessGroup | None = None) -> Tensor:
    """Concatenates every rank's rows, in rank order. Collective: 1 sizes, 2 rows padded to the longest.

    Args:
        rows_RC: This rank's.
        process_group: Of the ranks; None: all.
    """
    if not is_distributed():
        return rows_RC
    world_size = dist.get_world_size(process_group)
    size = torch.tensor([rows_RC.shape[0]], dtype=torch.int64, device=rows_RC.device)
    sizes = torch.zeros(world_size, dtype=torch.int64, device=rows_RC.device)
    dist.all_gather_into_tensor(sizes, size, group=process_group)
    counts = sizes.tolist()
    padded = rows_RC.new_zeros(max(counts), rows_RC.shape[1])
    padded[: rows_RC.shape[0]] = rows_RC
    gathered = rows_RC.new_zeros(world_size * max(counts), rows_RC.shape[1])
    dist.all_gather_into_tensor(gathered, padded, group=process_group)
    blocks = gathered.view(world_size, max(counts), rows_RC.shape[1])
    return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])


def _rows(engine: Evaluable, batch: TaskBatch, regression_N: Tensor) -> Tensor:
    """The batch's real examples as float64 rows; ids are exact up to 2**53."""
    output = engine(batch)
    losses = row_losses(output, batch, regression_N)
    if isinstance(output, TokenOutput):
        right_L = output.logits_LV.argmax(dim=-1) == targets(output, batch)
        prediction_B, label_B, loss_B = by_row(right_L.double(), output, batch), losses.count_B, losses.sum_B
    else:
        prediction_B = predictions(output.logits_BC, regression_N[batch.task_ids_B])
        label_B, loss_B = batch.labels_B, losses.mean_B
    columns = [batch.task_ids_B, batch.example_ids_B, prediction_B, label_B, loss_B]
    return torch.stack([column.double() for column in columns], dim=1)[batch.example_mask_B]


def _check_complete(rows: NDArray[np.float64], sizes: tuple[int, ...], split: str) -> None:
    """An evaluation that lost or repeated an example would be silently wrong: this is distmoe's own mistake."""
    seen = np.unique(rows[:, :2], axis=0)
    assert len(seen) == len(rows), f"{split}: {len(rows) - len(seen)} examples were evaluated twice"
    counts = tuple(int((seen[:, 0] == task).sum()) for task in range(len(sizes)))
    assert counts == sizes, f"{split}: evaluated {counts} examples per task, the split has {sizes}"


def _score_task(spec: TaskSpec, rows: NDArray[np.float64], by_text: float | None) -> TaskScore:
    if spec.predicts_tokens:
        right, count, loss = rows[:, 2:].sum(axis=0)
        mean = float(loss / count) if count else float("nan")
        value = score_tokens(spec, right, count, mean) if by_text is None else by_text
        return TaskScore(spec.name, spec.metric, value, mean, len(rows), is_per_token=True)
    return TaskScore(spec.name, spec.metric, score(spec, rows[:, 2], rows[:, 3]), float(rows[:, 4].mean()), len(rows))
