"""The loader of uncertainty sampling: candidates of every task, then the chosen ones. It does not score.

Life of a step, the same on all ranks: 1. every task gives its next candidates; 2. the ranks of a host class divide
them (:meth:`PoolLoader.own_candidates`); 3. somebody scores them and makes all scores known to all ranks; 4. every
rank computes the choice of all ranks, keeps its part and forgets the pool (:meth:`PoolLoader.chosen`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distmoe.data.accounts import SampleAccounts
from distmoe.data.batch import TaskBatch
from distmoe.data.config import DataConfig
from distmoe.data.dealing import Dealer
from distmoe.data.encoded import EncodedTasks, ExampleStore
from distmoe.data.sampling.order import ExampleOrder
from distmoe.data.sampling.uncertainty import adjust_scores, choose, take_distinct
from distmoe.errors import CheckpointError, ConfigError
from distmoe.parallel.placement import Placement
from distmoe.tasks import TaskSet

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """The candidates of one step, over all ranks and host classes.

    Attributes:
        task_ids_N: Task of each candidate.
        example_ids_N: Index in the task's training split.
        class_N: Host class that may train it.
        rank_in_class_N: Which of its ranks scores it.
    """

    task_ids_N: Ids
    example_ids_N: Ids
    class_N: Ids
    rank_in_class_N: Ids

    def __len__(self) -> int:
        return len(self.task_ids_N)


class PoolLoader:
    """Draws candidates and deals the chosen ones.

    Args:
        encoded: Tokenized tasks.
        tasks: Tasks of the run.
        config: Batch sizes and sampling.
        placement: Which ranks may train which tasks.
        rank: This rank.
        seed: The run's seed.
        pin_memory: Page-locked tensors.

    Raises:
        ConfigError: If a regression task has no declared score, a quota or a choice is larger than what it is taken
            from, or the batch size does not fit the ranks.
    """

    def __init__(
        self,
        encoded: EncodedTasks,
        *,
        tasks: TaskSet,
        config: DataConfig,
        placement: Placement,
        rank: int,
        seed: int,
        pin_memory: bool = False,
    ) -> None:
        check_uncertainty(config, tasks)
        self._dealer = Dealer(encoded, config=config, placement=placement, rank=rank, pin_memory=pin_memory)
        self.accumulation_steps = self._dealer.accumulation_steps
        self._sampling, self.scoring_batch_size = config.sampling, config.eval_batch_size
        self._hosts = placement.host_classes
        self._sizes, self._seed = list(encoded.train_sizes), seed
        self._orders = [ExampleOrder(size, seed=seed, task_id=task) for task, size in enumerate(self._sizes)]
        wanted = config.sampling.candidates or config.batch_size
        self._candidates = [min(wanted, size) for size in self._sizes]
        self._num_classes = np.asarray([spec.num_outputs for spec in tasks], dtype=np.int64)
        self._places = [0] * len(self._sizes)
        self._check_choices(config, tasks)

    @property
    def accounts(self) -> SampleAccounts:
        """What has been used of the data, over all ranks."""
        return self._dealer.accounts

    @property
    def store(self) -> ExampleStore:
        """All training examples."""
        return self._dealer.store

    def scoring_batch(self, rows: Ids) -> TaskBatch:
        """Returns training examples by their rows of the store; their losses weigh nothing."""
        return self._dealer.batch(rows, np.zeros(len(rows), np.float32))

    def recurring_rows(self, num_steps: int) -> Ids:
        """Rows of the tasks whose examples this rank scores twice or more in a run, those scored most often first."""
        host = self._hosts[self._dealer.class_index]
        passes = {task: num_steps * self._candidates[task] / self._sizes[task] / len(host.ranks) for task in host.tasks}
        often = sorted((task for task in host.tasks if passes[task] >= 2), key=lambda task: -passes[task])
        first = self.store.first_row_of_task
        return np.concatenate([np.arange(first[task], first[task + 1]) for task in often] or [np.zeros(0, np.int64)])

    @property
    def num_scoring_batches(self) -> int:
        """Forward passes that every rank makes to score a pool: what the busiest rank needs."""
        per_rank = [-(-sum(self._candidates[task] for task in host.tasks) // len(host.ranks)) for host in self._hosts]
        return -(-max(per_rank) // self.scoring_batch_size)

    def draw(self) -> Pool:
        """Draws the next candidates of every task."""
        task_ids, example_ids, classes, ranks = [], [], [], []
        for index, host in enumerate(self._hosts):
            for task in host.tasks:
                examples, self._places[task] = take_distinct(
                    self._orders[task], self._places[task], self._candidates[task]
                )
                task_ids.append(np.full(len(examples), task, dtype=np.int64))
                example_ids.append(examples)
            size = sum(self._candidates[task] for task in host.tasks)
            classes.append(np.full(size, index, dtype=np.int64))
            # In turn: with scope "rank", every rank then chooses from candidates of all its tasks.
            ranks.append(np.arange(size) % len(host.ranks))
        return Pool(*(np.concatenate(parts).astype(np.int64) for parts in (task_ids, example_ids, classes, ranks)))

    def own_candidates(self, pool: Pool) -> tuple[Ids, list[TaskBatch]]:
        """Returns the places of this rank's candidates, and them in as many batches as on every other rank.

        The rows of the batches, one after another, are the places in order; placeholders follow.
        """
        dealer = self._dealer
        own = np.flatnonzero((pool.class_N == dealer.class_index) & (pool.rank_in_class_N == dealer.place_in_class))
        rows = dealer.rows(pool.task_ids_N[own], pool.example_ids_N[own])
        by_length = np.argsort(-dealer.store.lengths_N[rows], kind="stable")
        own, rows = own[by_length], rows[by_length]
        batches = []
        for number in range(self.num_scoring_batches):
            part = rows[number * self.scoring_batch_size : (number + 1) * self.scoring_batch_size]
            batches.append(self.scoring_batch(part) if len(part) else dealer.placeholder())
        return own, batches

    def chosen(self, pool: Pool, scores_N: npt.NDArray[np.float64]) -> list[TaskBatch]:
        """Returns this rank's micro-batches of the most uncertain candidates.

        Args:
            pool: From :meth:`draw`.
            scores_N: Score of every candidate, equal on all ranks.
        """
        self.accounts.scored(len(pool))
        # A score that is not finite: trained on, it stops the run and names the example.
        scores_N = np.nan_to_num(scores_N, nan=np.inf, posinf=np.inf)
        step = []
        for index, host in enumerate(self._hosts):
            electorates = self._electorates(pool, index)
            parts = [self._choose(pool, scores_N, members, len(host.ranks)) for members in electorates]
            by_length = [part[np.argsort(self._lengths(pool, part), kind="stable")] for part in parts]
            chosen = np.concatenate(by_length) if len(parts) == 1 else self._side_by_side(by_length)
            task_ids, example_ids = pool.task_ids_N[chosen], pool.example_ids_N[chosen]
            step.append((task_ids, example_ids))
        return self._dealer.deal(step, corrections=[1.0] * len(step))

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values, equal on all ranks."""
        return {
            "places": list(self._places), "accounts": self.accounts.state_dict(), "settings": self._settings()
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly where ``state`` was taken, on any number of ranks.

        Raises:
            CheckpointError: If the state belongs to other tasks, another seed or another sampling.
        """
        saved, now = state.get("settings", {}), self._settings()
        different = [key for key in now if saved.get(key) != now[key]]
        if different or "places" not in state:
            raise CheckpointError(
                "the sampler state belongs to another run",
                got={key: saved.get(key) for key in different},
                expected={key: now[key] for key in different},
                remedy="resume with the same tasks, data, sampling and seed, or start a new run",
            )
        self._places = list(state["places"])
        self.accounts.load_state_dict(state["accounts"])

    def _settings(self) -> dict[str, Any]:
        # The cache decides where scores are computed, not what is scored.
        return {"sizes": self._sizes, "seed": self._seed, **self._sampling.model_dump(exclude={"trunk_cache"})}

    def _electorates(self, pool: Pool, index: int) -> list[Ids]:
        """The parts of a class's candidates from which is chosen separately, in the order of its ranks."""
        of_class = pool.class_N == index
        if self._sampling.scope == "global":
            return [np.flatnonzero(of_class)]
        ranks = range(len(self._hosts[index].ranks))
        return [np.flatnonzero(of_class & (pool.rank_in_class_N == rank)) for rank in ranks]

    def _choose(self, pool: Pool, scores_N: npt.NDArray[np.float64], members: Ids, num_ranks: int) -> Ids:
        if not len(members):
            return members
        task_ids, example_ids = pool.task_ids_N[members], pool.example_ids_N[members]
        classes = self._num_classes[task_ids]
        scores = adjust_scores(scores_N[members], task_ids, example_ids, classes, self._sampling.score)
        per_rank = self._dealer.micro_batch_size * self.accumulation_steps
        count = per_rank * (num_ranks if self._sampling.scope == "global" else 1)
        return members[choose(scores, task_ids, example_ids, count=count, quota=self._sampling.quota)]

    def _lengths(self, pool: Pool, places: Ids) -> npt.NDArray[np.int32]:
        rows = self._dealer.rows(pool.task_ids_N[places], pool.example_ids_N[places])
        return self._dealer.store.lengths_N[rows]

    def _side_by_side(self, by_rank: list[Ids]) -> Ids:
        """The order in which the dealer gives every rank its own choice: micro-batch by micro-batch, rank by rank."""
        choices = np.stack(by_rank).reshape(len(by_rank), self.accumulation_steps, -1)
        return choices.swapaxes(0, 1).reshape(-1)

    def _check_choices(self, config: DataConfig, tasks: TaskSet) -> None:
        """Every electorate must have more candidates than are chosen from it, and room for every task's quota."""
        per_rank = self._dealer.micro_batch_size * self.accumulation_steps
        for host in self._hosts:
            if not host.tasks:
                continue
            num_ranks = len(host.ranks)
            available = sum(self._candidates[task] for task in host.tasks)
            if config.sampling.scope == "rank":
                available //= num_ranks
            chosen = per_rank * (num_ranks if config.sampling.scope == "global" else 1)
            names = [tasks[task].name for task in host.tasks]
            _check_choice(names, available=available, chosen=chosen, quota=config.sampling.quota)
            share = num_ranks if config.sampling.scope == "rank" else 1
            for task in host.tasks:
                _check_quota(tasks[task].name, self._candidates[task] // share, quota=config.sampling.quota)


def _check_choice(names: Sequence[str], *, available: int, chosen: int, quota: int) -> None:
    """Refuses a choice of ``chosen`` from ``available`` candidates of the named tasks that cannot be made."""
    listed = ", ".join(names)
    if available < chosen:
        raise ConfigError(
            "uncertainty sampling would choose more examples than it has candidates",
            got=f"{available} candidates of {listed} for {chosen} examples per step",
            expected=f"at least {chosen} candidates",
            remedy="raise data.sampling.candidates, or lower data.batch_size",
        )
    if quota * len(names) > chosen:
        raise ConfigError(
            "the quotas of uncertainty sampling do not fit into a batch",
            got=f"data.sampling.quota={quota} for {len(names)} tasks ({listed}), {chosen} examples per choice",
            expected=f"data.sampling.quota <= {chosen // len(names)}",
            remedy="lower data.sampling.quota, or raise data.batch_size",
        )


def _check_quota(name: str, available: int, *, quota: int) -> None:
    if quota > available:
        raise ConfigError(
            f"the quota of uncertainty sampling is larger than what it is taken from: task {name}",
            got=f"data.sampling.quota={quota}, {available} candidates of {name} per choice",
            expected=f"data.sampling.quota <= {available}",
            remedy="lower data.sampling.quota, raise data.sampling.candidates, or give the task more training examples",
        )


def check_uncertainty(config: DataConfig, tasks: TaskSet) -> None:
    """Refuses what cannot work however large the tasks and whatever the placement; needs no data.

    Raises:
        ConfigError: If a regression task declares no score, a score is outside 0 to 1, or is declared for a task that
            is no regression of the run; or if a batch is larger than all candidates, or smaller than all quotas.
    """
    per_task = config.sampling.candidates or config.batch_size
    names = [spec.name for spec in tasks]
    _check_choice(names, available=per_task * len(names), chosen=config.batch_size, quota=config.sampling.quota)
    declared = config.sampling.regression_score
    regressions = [spec.name for spec in tasks if spec.is_regression]
    missing = [name for name in regressions if name not in declared]
    if missing:
        raise ConfigError(
            "uncertainty sampling needs a score for regression tasks, which have no entropy",
            got=f"no data.sampling.regression_score for {', '.join(missing)}",
            expected="error, or a number from 0 to 1, for each of them",
            remedy=f"add 'data.sampling.regression_score={{{missing[0]}: error}}', or choose another strategy",
        )
    wrong = [
        f"{name}: {score}"
        for name, score in declared.items()
        if name not in regressions or (not isinstance(score, str) and not 0 <= score <= 1)
    ]
    if wrong:
        raise ConfigError(
            "data.sampling.regression_score does not fit the tasks",
            got=", ".join(wrong),
            expected=f"error or a number from 0 to 1 for {', '.join(regressions) or 'no task: there is no regression'}",
            remedy="correct data.sampling.regression_score",
        )
