"""The probe set of a run as batches: the same sequences, in the same batches, on every rank and in every phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from distmoe.data.batch import TaskBatch
from distmoe.data.collate import collate, placeholder
from distmoe.data.encoded import EncodedTasks, ExampleStore
from distmoe.seed import numpy_generator
from distmoe.structure.probe import Probe, select_probe

_ROWS = 64


class ProbeSet:
    """Examples on which task groups are compared.

    Args:
        encoded: Tokenized tasks.
        num_examples: Size of the set.
        seed: Of the run.
        split: Where the set is drawn from.

    Raises:
        DataError: If the split has fewer examples than asked for.
    """

    def __init__(
        self,
        encoded: EncodedTasks,
        *,
        num_examples: int,
        seed: int,
        split: Literal["train", "validation"] = "train",
    ) -> None:
        chosen = encoded.split(split)
        self.probe: Probe = select_probe([len(one) for one in chosen], num_examples=num_examples, seed=seed)
        self._store = ExampleStore.join(chosen)
        self._trained = self._store if split == "train" else ExampleStore.join(encoded.train)
        self._pad_token_id = encoded.pad_token_id
        self._rows = np.array([self._store.first_row_of_task[task] + example for task, example in self.probe.ids])
        # The set is in order of task; a window of it must hold all tasks.
        order = np.random.default_rng(int(self.probe.sha256[:8], 16)).permutation(len(self._rows))
        self._mixed = self._rows[order]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_batches(self) -> int:
        return -(-len(self) // _ROWS)

    def rows_of(self, index: int) -> slice:
        """Which examples of the set batch ``index`` holds."""
        return slice(index * _ROWS, min((index + 1) * _ROWS, len(self)))

    def batch(self, index: int) -> TaskBatch:
        return self._collate(self._rows[self.rows_of(index)])

    def targets_and_labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Task id and label of every example of the set, ``[N]`` int64 and float64."""
        batches = [self.batch(index) for index in range(self.num_batches)]
        targets = np.concatenate([batch.task_ids_B.numpy() for batch in batches])
        return targets, np.concatenate([batch.labels_B.numpy().astype(np.float64) for batch in batches])

    def counts(self) -> tuple[int, ...]:
        """Examples of each task in the set."""
        return tuple(np.bincount([task for task, _ in self.probe.ids], minlength=len(self.probe.sizes)).tolist())

    def window(self, index: int, num_examples: int) -> TaskBatch:
        """A mini-batch of all tasks; consecutive indices go round the set."""
        places = (index * num_examples + np.arange(num_examples)) % len(self)
        return self._collate(self._mixed[places])

    def draw(
        self, tasks: Sequence[int], index: int, num_examples: int, *, key: str, part: tuple[int, int]
    ) -> tuple[TaskBatch, int]:
        """A mini-batch of all training examples of some tasks, not only of the set; consecutive indices go round them.

        Args:
            tasks: Whose examples.
            index: Which mini-batch.
            num_examples: Of the mini-batch, over all parts.
            key: Names the order of the examples.
            part: Which of how many ranks; one without examples gets a placeholder.

        Returns:
            This part's examples, and the tokens of all parts.
        """
        first = self._trained.first_row_of_task
        rows = np.concatenate([np.arange(first[task], first[task + 1]) for task in tasks])
        order = numpy_generator(self.probe.seed, "draw", key).permutation(len(rows))
        places = (index * num_examples + np.arange(num_examples)) % len(rows)
        chosen = rows[order[places]]
        own = chosen[part[0] :: part[1]]
        num_tokens = int(self._trained.lengths_N[chosen].sum())
        return (self._collate(own, self._trained) if len(own) else self.no_rows(tasks[0])), num_tokens

    def no_rows(self, task: int) -> TaskBatch:
        """For a rank that must run along."""
        return placeholder(task_id=task, pad_token_id=self._pad_token_id, store=self._store)

    def _collate(self, rows: Sequence[int] | np.ndarray, store: ExampleStore | None = None) -> TaskBatch:
        weights = np.zeros(len(rows), dtype=np.float32)
        return collate(
            self._store if store is None else store, np.asarray(rows), weights, pad_token_id=self._pad_token_id
        )
