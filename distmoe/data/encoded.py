"""Tokenized examples: one split of one task, in flat arrays or as windows of an indexed set, and all tasks of a run.

Shape letters: N examples, T tokens of all examples one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from distmoe.data.indexed.windows import WindowSplit


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
        prompt_lengths_N: Of a generation task: leading tokens of each example that are given, not learned, int32.
        references: Of a generation task: the right answers of each example.
    """

    input_ids_T: npt.NDArray[np.int32]
    token_type_ids_T: npt.NDArray[np.int8] | None
    starts_N: npt.NDArray[np.int64]
    lengths_N: npt.NDArray[np.int32]
    labels_N: npt.NDArray[np.float32]
    num_truncated: int
    num_dropped: int = 0
    prompt_lengths_N: npt.NDArray[np.int32] | None = None
    references: tuple[tuple[str, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.labels_N)


AnySplit = EncodedSplit | WindowSplit


@dataclass(frozen=True)
class EncodedTasks:
    """All splits of all tasks, by task id.

    Attributes:
        train: One split per task.
        validation: One split per task.
        test: One split per task; None where the task has no test split.
        pad_token_id: Fills rows up to the longest of a batch.
        shifted: Name of a split under shift -> the shifted test split per task.
    """

    train: tuple[AnySplit, ...]
    validation: tuple[AnySplit, ...]
    test: tuple[AnySplit | None, ...]
    pad_token_id: int
    shifted: Mapping[str, tuple[AnySplit, ...]] = field(default_factory=dict)

    def split(self, name: str) -> tuple[AnySplit, ...]:
        """Splits of all tasks; a task without test is represented by its validation (see :attr:`without_test`)."""
        if name == "train":
            return self.train
        if name == "validation":
            return self.validation
        if name in self.shifted:
            return self.shifted[name]
        assert name == "test", f"no split {name}"
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
        prompt_lengths_N: Tokens of each row that are given; all of them where answers are no tokens. None if no task
            predicts tokens.
        windows: Tasks whose rows are not in the arrays but read from indexed sets; ``starts_N`` is 0 there.
        first_row_of_task: Row of each task's example 0; a row is ``first_row_of_task[task] + example``. One longer
            than the number of tasks.
        task_ids_N, example_ids_N: Task, and index in the task's split, of each row, int64.
    """

    input_ids_T: npt.NDArray[np.int32]
    token_type_ids_T: npt.NDArray[np.int8] | None
    starts_N: npt.NDArray[np.int64]
    lengths_N: npt.NDArray[np.int32]
    labels_N: npt.NDArray[np.float32]
    prompt_lengths_N: npt.NDArray[np.int32] | None
    windows: Mapping[int, WindowSplit]
    task_ids_N: npt.NDArray[np.int64]
    example_ids_N: npt.NDArray[np.int64]
    first_row_of_task: npt.NDArray[np.int64]

    @classmethod
    def join(cls, splits: tuple[AnySplit, ...]) -> ExampleStore:
        sizes = [len(split) for split in splits]
        windows = {task: split for task, split in enumerate(splits) if isinstance(split, WindowSplit)}
        arrays = [split for split in splits if isinstance(split, EncodedSplit)]
        first_token = iter(np.cumsum([0, *(len(split.input_ids_T) for split in arrays)]))
        types = [split.token_type_ids_T for split in arrays if split.token_type_ids_T is not None]
        return cls(
            input_ids_T=np.concatenate([np.zeros(0, dtype=np.int32), *(split.input_ids_T for split in arrays)]),
            token_type_ids_T=np.concatenate(types) if types and len(types) == len(splits) else None,
            starts_N=np.concatenate(
                [
                    split.starts_N + next(first_token) if isinstance(split, EncodedSplit) else np.zeros(size, np.int64)
                    for split, size in zip(splits, sizes, strict=True)
                ]
            ),
            lengths_N=np.concatenate([split.lengths_N for split in splits]),
            labels_N=np.concatenate([split.labels_N for split in splits]),
            prompt_lengths_N=_prompt_lengths(splits),
            windows=windows,
            task_ids_N=np.repeat(np.arange(len(splits)), sizes),
            example_ids_N=np.concatenate([np.arange(size) for size in sizes]),
            first_row_of_task=np.cumsum([0, *sizes]),
        )


def _prompt_lengths(splits: tuple[AnySplit, ...]) -> npt.NDArray[np.int32] | None:
    """Of a row whose answer is no token, everything is given: then it has no target. Windows bring their own."""
    if all(isinstance(split, EncodedSplit) and split.prompt_lengths_N is None for split in splits):
        return None
    return np.concatenate([s.lengths_N if s.prompt_lengths_N is None else s.prompt_lengths_N for s in splits])
