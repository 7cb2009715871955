"""The evaluation loader of one rank: every example exactly once over all ranks, equally many batches on each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from distmoe.data.batch import TaskBatch
from distmoe.data.collate import collate, placeholder
from distmoe.data.config import DataConfig
from distmoe.data.encoded import EncodedTasks, ExampleStore
from distmoe.parallel.placement import Placement
from distmoe.tasks import TaskSet


class EvalLoader:
    """Deals a split to the ranks that host its tasks, longest examples first.

    Args:
        encoded: Tokenized tasks.
        tasks: Tasks of the run.
        config: ``eval_batch_size`` is examples per rank and forward pass.
        placement: Which ranks may evaluate which tasks.
        rank: This rank.
        pin_memory: Page-locked tensors, for copies to a GPU that overlap with compute.
    """

    def __init__(
        self,
        encoded: EncodedTasks,
        *,
        tasks: TaskSet,
        config: DataConfig,
        placement: Placement,
        rank: int,
        pin_memory: bool = False,
    ) -> None:
        assert len(encoded.train) == len(tasks)
        self._encoded, self._batch_size, self._placement = encoded, config.eval_batch_size, placement
        self._pin_memory = pin_memory
        self._class_index, host = next((i, host) for i, host in enumerate(placement.host_classes) if rank in host.ranks)
        self._place_in_class = host.ranks.index(rank)
        self._placeholder_task = host.tasks[0] if host.tasks else 0
        self._stores: dict[str, ExampleStore] = {}

    def num_batches(self, split: str) -> int:
        """Batches of every rank: the number that the busiest rank needs."""
        rounds = [
            -(-len(chunks) // len(host.ranks))
            for chunks, host in zip(self._chunks(split), self._placement.host_classes, strict=True)
        ]
        return max(rounds)

    def batches(self, split: str) -> Iterator[TaskBatch]:
        """Yields this rank's batches; loss weights are 1 for examples, and a rank that is done yields placeholders.

        The "test" of a task without a test split is its validation (:attr:`EncodedTasks.without_test`).
        """
        chunks = self._chunks(split)[self._class_index]
        step = len(self._placement.host_classes[self._class_index].ranks)
        store, pad_token_id = self._store(split), self._encoded.pad_token_id
        for index in range(self.num_batches(split)):
            place = index * step + self._place_in_class
            if place < len(chunks):
                ones = np.ones(len(chunks[place]), dtype=np.float32)
                batch = collate(store, chunks[place], ones, pad_token_id=pad_token_id)
            else:
                batch = placeholder(task_id=self._placeholder_task, pad_token_id=pad_token_id, store=store)
            yield batch.pinned() if self._pin_memory else batch

    def _store(self, split: str) -> ExampleStore:
        if split not in self._stores:
            self._stores[split] = ExampleStore.join(self._encoded.split(split))
        return self._stores[split]

    def _chunks(self, split: str) -> list[list[npt.NDArray[np.int64]]]:
        """Per host class, the rows of its tasks cut into batches; consecutive batches go to consecutive ranks.

        Longest first: the largest memory need shows at once, and batches of one round have neighbouring lengths.
        """
        store = self._store(split)
        by_class = []
        for host in self._placement.host_classes:
            rows = np.flatnonzero(np.isin(store.task_ids_N, host.tasks))
            rows = rows[np.argsort(-store.lengths_N[rows], kind="stable")]
            by_class.append([rows[first : first + self._batch_size] for first in range(0, len(rows), self._batch_size)])
        return by_class
