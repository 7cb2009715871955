"""Tasks whose texts are tokenized already: indexed sets in megatron-core's format, described under ``tasks.indexed``.

::

    tasks:
      source: indexed
      indexed:
        prose:                                     # language modelling: windows of packed documents
          train: {books: 0.7, news: 0.3}           # a blend; data.root/books.bin, data.root/books.idx, ...
          validation: prose_valid
        e2e:                                       # text -> target
          kind: generation
          metric: bleu
          train: e2e_train
          validation: e2e_valid
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

from distmoe.data.config import IndexedTaskConfig
from distmoe.data.example import TaskExample
from distmoe.data.indexed.files import bin_path, exists, idx_path
from distmoe.data.sources.base import SPLITS, Split, TaskSource
from distmoe.errors import DataError
from distmoe.tasks import TaskSpec


class IndexedSource(TaskSource):
    """Tasks described under ``tasks.indexed``.

    Args:
        tasks: Task name -> its sets.
        root: Folder from which relative paths of sets start; None: the working directory.
    """

    def __init__(self, tasks: Mapping[str, IndexedTaskConfig], *, root: str | None) -> None:
        self._tasks, self._root = dict(tasks), Path(root or ".")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    def spec(self, name: str) -> TaskSpec:
        task = self._task(name)
        if task.kind == "generation" and isinstance(task.train, dict):
            raise DataError(
                f"task {name!r} is a generation task, which sees every pair once per epoch",
                got=f"weights in tasks.indexed.{name}.train",
                expected="a path, or a list of paths",
                remedy="remove the weights, or make two tasks and weigh them with data.sampling",
            )
        weights = task.train if isinstance(task.train, dict) else {}
        if not all(0 < weight < math.inf for weight in weights.values()):
            raise DataError(
                f"task {name!r} blends its sets with weights that are no shares",
                got=", ".join(f"{path}: {weight:g}" for path, weight in weights.items()),
                expected="weights above 0",
                remedy=f"correct tasks.indexed.{name}.train, and leave out the sets that shall not be read",
            )
        for split in self.splits(name):
            for path in self.indexed_sets(name, split) or {}:
                if not exists(path):
                    raise DataError(
                        f"task {name!r} has no indexed set for {split}",
                        got=f"neither {path}.bin nor {path}.idx" if not idx_path(path).is_file() else f"no {path}.bin",
                        expected=f"{path}.bin and {path}.idx",
                        remedy=f"write them with tools/preprocess_indexed.py, or correct tasks.indexed.{name}.{split} "
                        "or data.root",
                    )
        return TaskSpec(name=name, kind=task.kind, metric=task.metric, family=task.family, description=task.description)

    def splits(self, name: str) -> tuple[Split, ...]:
        return tuple(split for split in SPLITS if getattr(self._task(name), split) is not None)

    def examples(self, name: str, split: Split) -> list[TaskExample]:
        raise DataError(
            f"task {name!r} holds token ids, not texts",
            got="an indexed set where texts are needed",
            expected="tasks.source local, hub or suite",
            remedy="use the files from which the set was made",
        )

    def indexed_sets(self, name: str, split: Split) -> Mapping[str, float]:
        sets = getattr(self._task(name), split)
        if isinstance(sets, str):
            sets = [sets]
        weights = sets if isinstance(sets, dict) else dict.fromkeys(sets, 0.0)
        return {str(self._root / path): weight for path, weight in weights.items()}

    def fingerprint(self, name: str, split: Split) -> str:
        """Of the index, which tells the length of every document, and of the size and the time of the ids."""
        digest = hashlib.sha256()
        for path, weight in self.indexed_sets(name, split).items():
            with idx_path(path).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            ids = bin_path(path).stat()
            digest.update(f"{Path(path).name} {weight} {ids.st_size} {ids.st_mtime_ns}".encode())
        return digest.hexdigest()

    def _task(self, name: str) -> IndexedTaskConfig:
        if name not in self._tasks:
            raise DataError(
                "no such task under tasks.indexed",
                got=name,
                expected=" | ".join(self._tasks) or "no task is described",
                remedy="correct tasks.names, or describe the task under tasks.indexed",
            )
        return self._tasks[name]
