"""Tokenized examples in flat arrays: one split of one task, and all tasks of a run.

Shape letters: N examples, T tokens of all examples one after another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distmoe.data.sources.base import Split


@dataclass(frozen=True)
class EncodedSplit:
    """One split of one task.

    Attributes:
        input_ids_T: Token ids, int32, examples one after another.
        token_type_ids_T: Segment ids, int8, or None if the tokenizer makes none.
        starts_N: First token of each example, int64.
        lengths_N: Tokens of each example, int32, at least 1.
        labels_N: float32; class ids are exact up to 2**24, and regression targets are never cut to integers.
        num_truncated: Examples that were longer than ``data.max_length``.
        num_dropped: Examples left out by ``data.max_train_examples``.
    """

    input_ids_T: npt.NDArray[np.int32]
    token_type_ids_T: npt.NDArray[np.int8] | None
    starts_N: npt.NDArray[np.int64]
    lengths_N: npt.NDArray[np.int32]
    labels_N: npt.NDArray[np.float32]
    num_truncated: int
    num_dropped: int = 0

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True)
class EncodedTasks:
    """All splits of all tasks, by task id.

    Attributes:
        train: One split per task.
        validation: One split per task.
        test: One split per task; None where the task has no test split.
        pad_token_id: Fills rows up to the longest of a batch.
    """

    train: tuple[EncodedSplit, ...]
    validation: tuple[EncodedSplit, ...]
    test: tuple[EncodedSplit | None, ...]
    pad_token_id: int

    def split(self, name: Split) -> tuple[EncodedSplit, ...]:
        """Splits of all tasks; a task without test is represented by its validation (see :attr:`without_test`)."""
        if name == "train":
            return self.train
        if name == "validation":
            return self.validation
        return tuple(v if t is None else t for t, v in zip(self.test, self.validation, strict=True))

    @property
    def without_test(self) -> tuple[int, ...]:
        """Tasks whose "test" scores are really validation scores: reports must say so."""
        return tuple(task for task, test in enumerate(self.test) if test is None)

    @property
    def train_sizes(self) -> tuple[int, ...]:
        return tuple(len(split) for split in self.train)


@dataclass(frozen=True)
class ExampleStore:
    """One split of all tasks in one set of arrays, so that a mixed batch is a single gather.

    Attributes:
        first_row_of_task: Row of each task's example 0; a row is ``first_row_of_task[task] + example``. One longer
            than the number of tasks.
        task_ids_N, example_ids_N: Task, and index in the task's split, of each row, int64.
    """

    input_ids_T: npt.NDArray[np.int32]
    token_type_ids_T: npt.NDArray[np.int8] | None
    starts_N: npt.NDArray[np.int64]
    lengths_N: npt.NDArray[np.int32]
    labels_N: npt.NDArray[np.float32]
    task_ids_N: npt.NDArray[np.int64]
    example_ids_N: npt.NDArray[np.int64]
    first_row_of_task: npt.NDArray[np.int64]

    @classmethod
    def join(cls, splits: tuple[EncodedSplit, ...]) -> ExampleStore:
        sizes = [len(split) for split in splits]
        first_token = np.cumsum([0, *(len(split.input_ids_T) for split in splits)])
        types = [split.token_type_ids_T for split in splits if split.token_type_ids_T is not None]
        return cls(
            input_ids_T=np.concatenate([split.input_ids_T for split in splits]),
            token_type_ids_T=np.concatenate(types) if len(types) == len(splits) else None,
            starts_N=np.concatenate(
                [split.starts_N + first for split, first in zip(splits, first_token, strict=False)]
            ),
            lengths_N=np.concatenate([split.lengths_N for split in splits]),
            labels_N=np.concatenate([split.labels_N for split in splits]),
            task_ids_N=np.repeat(np.arange(len(splits)), sizes),
            example_ids_N=np.concatenate([np.arange(size) for size in sizes]),
            first_row_of_task=np.cumsum([0, *sizes]),
        )
