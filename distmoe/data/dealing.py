"""From the examples of a whole step to the micro-batches of one rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distmoe.data.accounts import SampleAccounts
from distmoe.data.batch import TaskBatch
from distmoe.data.collate import collate, placeholder
from distmoe.data.config import DataConfig
from distmoe.data.encoded import EncodedTasks, ExampleStore
from distmoe.data.loss_weights import step_weights
from distmoe.errors import ConfigError
from distmoe.parallel.placement import Placement

Rows = npt.NDArray[np.int64]


class Dealer:
    """Cuts the steps of all host classes into micro-batches and keeps those of this rank.

    Args:
        encoded: Tokenized tasks.
        config: Batch sizes and the task loss.
        placement: Which ranks may train which tasks.
        rank: This rank.
        pin_memory: Page-locked tensors, for copies to a GPU that overlap with compute.

    Raises:
        ConfigError: If ``data.batch_size`` is not a multiple of ranks x ``data.micro_batch_size``.
    """

    def __init__(
        self, encoded: EncodedTasks, *, config: DataConfig, placement: Placement, rank: int, pin_memory: bool
    ) -> None:
        self.micro_batch_size, self.accumulation_steps = micro_batches(config, placement.num_ranks)
        self.examples_per_class = tuple(
            len(host.ranks) * self.micro_batch_size * self.accumulation_steps for host in placement.host_classes
        )
        self.store = ExampleStore.join(encoded.train)
        self.accounts = SampleAccounts(encoded.train_sizes)
        self.class_index, host = next((i, host) for i, host in enumerate(placement.host_classes) if rank in host.ranks)
        self.place_in_class, self.class_size = host.ranks.index(rank), len(host.ranks)
        self._placeholder_task = host.tasks[0] if host.tasks else 0
        self._pad_token_id, self._pin_memory = encoded.pad_token_id, pin_memory
        self._rule, self._batch_size = config.task_loss, config.batch_size
        self._num_shares = placement.num_ranks * self.accumulation_steps

    def deal(self, step: Sequence[tuple[Rows, Rows]], *, corrections: Sequence[float]) -> list[TaskBatch]:
        """Returns this rank's micro-batches: ``accumulation_steps`` of them, on every rank.

        Args:
            step: Per host class (task ids, example ids), ascending in length; all of a step or none.
            corrections: Per host class; see :func:`~distmoe.data.loss_weights.step_weights`.
        """
        for task_ids, example_ids in step:
            self.accounts.trained(task_ids, example_ids)
        task_ids, example_ids = step[self.class_index]
        if not len(task_ids):
            return [self.placeholder() for _ in range(self.accumulation_steps)]
        weights = step_weights(
            [tasks for tasks, _ in step],
            rule=self._rule,
            corrections=corrections,
            num_shares=self._num_shares,
            batch_size=self._batch_size,
        )[self.class_index]
        # In ascending length, chunk m * ranks + r goes to micro-batch m of rank r: ranks wait for each other at every
        # micro-batch, so these take neighbouring lengths.
        shape = (self.accumulation_steps, self.class_size, self.micro_batch_size)
        rows = self.rows(task_ids, example_ids).reshape(shape)
        return [
            self.batch(rows[micro, self.place_in_class], weights.reshape(shape)[micro, self.place_in_class])
            for micro in range(self.accumulation_steps)
        ]

    def rows(self, task_ids: Rows, example_ids: Rows) -> Rows:
        """Rows of the store."""
        return self.store.first_row_of_task[task_ids] + example_ids

    def batch(self, rows: Rows, weights: npt.NDArray[np.float32]) -> TaskBatch:
        """Returns examples by their rows of the store."""
        return self._pinned(collate(self.store, rows, weights, pad_token_id=self._pad_token_id))

    def placeholder(self) -> TaskBatch:
        """Returns the batch of a rank that has no example."""
        return self._pinned(
            placeholder(task_id=self._placeholder_task, pad_token_id=self._pad_token_id, store=self.store)
        )

    def _pinned(self, batch: TaskBatch) -> TaskBatch:
        return batch.pinned() if self._pin_memory else batch


def micro_batches(config: DataConfig, num_ranks: int) -> tuple[int, int]:
    """Examples per rank and forward pass, and forward passes per step."""
    micro = config.micro_batch_size
    unit = num_ranks * (micro or 1)
    if config.batch_size % unit:
        shown = f"{num_ranks} ranks" + (f" x data.micro_batch_size={micro} = {unit}" if micro else "")
        raise ConfigError(
            "data.batch_size must be a multiple of ranks x data.micro_batch_size",
            got=f"data.batch_size={config.batch_size} on {shown}",
            expected=f"a multiple of {unit}",
            remedy=f"set data.batch_size={-(-config.batch_size // unit) * unit}, or change data.micro_batch_size",
        )
    per_rank = config.batch_size // num_ranks
    micro = micro or per_rank
    return micro, per_rank // micro
