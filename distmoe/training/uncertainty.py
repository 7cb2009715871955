"""Scores the candidates of uncertainty sampling with the model that is being trained.

Collectives: the model's own, in the same number on each rank (:attr:`PoolLoader.num_scoring_batches`), then one
all-reduce of the scores. Scoring is an evaluation: dropout and router noise are off, no random generator advances, no
statistic, no moment and no weight changes, so a pool scored twice has the same scores bit by bit.

Shape letters: B sequences, C output columns of the widest head, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from distmoe.data.accounts import SampleAccounts
from distmoe.data.batch import TaskBatch
from distmoe.data.pool_loader import Pool, PoolLoader
from distmoe.tasks import TaskSet
from distmoe.training.agreement import is_distributed
from distmoe.training.evaluate import Evaluable, evaluating
from distmoe.training.frozen_trunk import FrozenTrunk

RegressionScore = Literal["error"] | float


class Scorer:
    """Uncertainty of each row from its logits: one operation for all tasks, nothing is read on the host.

    Classification: entropy over its largest value, ``log C``: 1 for a uniform answer, 0 for a certain one.
    Regression: what the run declares.

    Args:
        tasks: Tasks of the run.
        regression_score: Score of each regression task by name; see ``data.sampling.regression_score``.
        label_variances: Variance of the training labels, by task id; read for ``error`` only.
        device: Where logits are.
    """

    def __init__(
        self,
        tasks: TaskSet,
        *,
        regression_score: Mapping[str, RegressionScore],
        label_variances: Sequence[float],
        device: torch.device | str = "cpu",
    ) -> None:
        declared = [regression_score[spec.name] if spec.is_regression else 0.0 for spec in tasks]

        def vector(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        self._log_classes_T = vector([float(np.log(max(spec.num_outputs, 2))) for spec in tasks])
        self._regression_T = vector([float(spec.is_regression) for spec in tasks]).bool()
        self._by_error_T = vector([float(value == "error") for value in declared]).bool()
        self._constant_T = vector([0.0 if isinstance(value, str) else value for value in declared])
        self._variance_T = vector([max(value, 1e-12) for value in label_variances])

    def __call__(self, logits_BC: Tensor, task_ids_B: Tensor, labels_B: Tensor) -> Tensor:
        """Returns ``[B]`` float32; logits of any precision, -inf beyond a task's outputs."""
        logits_BC = logits_BC.float()
        entropy_B = torch.special.entr(logits_BC.softmax(dim=-1)).sum(dim=-1) / self._log_classes_T[task_ids_B]
        squared_B = (logits_BC[:, 0] - labels_B.float()).square() / self._variance_T[task_ids_B]
        regression_B = torch.where(self._by_error_T[task_ids_B], -torch.expm1(-squared_B), self._constant_T[task_ids_B])
        return torch.where(self._regression_T[task_ids_B], regression_B, entropy_B)


class UncertaintyLoader:
    """The loader of a run with ``data.sampling.strategy=uncertainty``: draw, score, choose.

    Args:
        pools: Draws candidates and deals the chosen ones.
        engine: Scores them; left in training mode.
        scorer: Turns logits into scores.
        trunk: What frozen layers give on examples; None: every pass goes through them.
        train_from_trunk: Whether chosen examples start behind the trunk too: exact only where training has no dropout.
    """

    def __init__(
        self,
        pools: PoolLoader,
        *,
        engine: Evaluable,
        scorer: Scorer,
        trunk: FrozenTrunk | None = None,
        train_from_trunk: bool = False,
    ) -> None:
        self._pools, self._engine, self._scorer = pools, engine, scorer
        self._trunk, self._train_from_trunk = trunk, train_from_trunk
        self.accumulation_steps = pools.accumulation_steps

    @property
    def accounts(self) -> SampleAccounts:
        """What has been used of the data, over all ranks."""
        return self._pools.accounts

    def next_step(self) -> list[TaskBatch]:
        """Returns this rank's micro-batches of the next step. Collective."""
        pool = self._pools.draw()
        chosen = self._pools.chosen(pool, self.score(pool))
        if not self._train_from_trunk:
            return chosen
        with evaluating(self._engine):
            return [self._ready(batch) for batch in chosen]

    def score(self, pool: Pool) -> npt.NDArray[np.float64]:
        """Returns the score of every candidate, equal on all ranks. Collective: every rank fills in its own."""
        own, batches = self._pools.own_candidates(pool)
        scores_N = torch.zeros(len(pool), dtype=torch.float64, device=self._engine.device)
        with evaluating(self._engine):
            parts = [self._score(self._ready(batch)) for batch in batches]
        # Placeholders stand behind all candidates: what is cut off here is theirs.
        scores_N[torch.from_numpy(own).to(scores_N.device)] = torch.cat(parts)[: len(own)].double()
        if is_distributed():
            # Each entry is one rank's number plus zeros: exact, whatever the order of the sum.
            dist.all_reduce(scores_N)
        return scores_N.cpu().numpy()

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values, equal on all ranks."""
        return self._pools.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly; see :meth:`PoolLoader.load_state_dict`."""
        self._pools.load_state_dict(state)

    def _ready(self, batch: TaskBatch) -> TaskBatch:
        device = self._engine.device
        return batch.to(device) if self._trunk is None else self._trunk.with_states(batch, device)

    def _score(self, batch: TaskBatch) -> Tensor:
        return self._scorer(self._engine(batch).logits_BC, batch.task_ids_B, batch.labels_B)
