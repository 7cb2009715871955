"""Tasks from the Hugging Face hub, or from anything else that ``datasets.load_dataset`` takes (a local folder too)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import datasets

from distmoe.data.config import HubTaskConfig
from distmoe.data.example import TaskExample
from distmoe.data.sources.base import REQUIRED_SPLITS, SPLITS, Split, TaskSource
from distmoe.data.sources.rows import ColumnNames, read_examples
from distmoe.errors import DataError
from distmoe.tasks import TaskSpec


class HubSource(TaskSource):
    """Tasks described under ``tasks.hub``; a data set is downloaded when its task is first used.

    Args:
        tasks: Task name -> where it is, and which column is what.
    """

    def __init__(self, tasks: Mapping[str, HubTaskConfig]) -> None:
        self._tasks = dict(tasks)
        self._loaded: dict[tuple[str, Split], datasets.Dataset] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    def spec(self, name: str) -> TaskSpec:
        task = self._task(name)
        for split in REQUIRED_SPLITS:
            if split not in task.splits:
                raise DataError(
                    f"task {name!r} has no {split} split",
                    got=", ".join(task.splits) or "none",
                    expected="train and validation at least",
                    remedy=f"set tasks.hub.{name}.splits.{split}",
                )
        if task.kind == "pair_classification" and task.text_pair is None:
            raise DataError(
                f"task {name!r} is a pair task without a second text column",
                got=f"tasks.hub.{name}.text_pair=null",
                expected="the column of the second text",
                remedy=f"set tasks.hub.{name}.text_pair",
            )
        return TaskSpec(
            name=name,
            kind=task.kind,
            metric=task.metric,
            labels=self._labels(name) if task.kind in ("classification", "pair_classification") else (),
            pair=task.text_pair is not None,
            family=task.family,
            description=task.description,
        )

    def splits(self, name: str) -> tuple[Split, ...]:
        return tuple(split for split in SPLITS if split in self._task(name).splits)

    def examples(self, name: str, split: Split) -> list[TaskExample]:
        task = self._task(name)
        columns = ColumnNames(task.text, task.text_pair, task.label, task.target, task.references)
        return read_examples(self._rows(name, split), spec=self.spec(name), split=split, columns=columns)

    def _task(self, name: str) -> HubTaskConfig:
        if name not in self._tasks:
            raise DataError(
                "no such task under tasks.hub",
                got=name,
                expected=" | ".join(self._tasks) or "no task is described",
                remedy="correct tasks.names, or describe the task under tasks.hub",
            )
        return self._tasks[name]

    def _labels(self, name: str) -> tuple[str, ...]:
        task = self._task(name)
        if task.labels:
            return tuple(task.labels)
        feature = self._dataset(name, "train").features.get(task.label)
        if not isinstance(feature, datasets.ClassLabel):
            raise DataError(
                f"task {name!r}: the data set does not name its classes",
                got=f"column {task.label!r}: {feature}",
                expected="a ClassLabel column",
                remedy=f"set tasks.hub.{name}.labels",
            )
        return tuple(feature.names)

    def _rows(self, name: str, split: Split) -> Iterator[tuple[str, dict[str, Any]]]:
        task = self._task(name)
        dataset = self._dataset(name, split)
        # Only the columns that exist: a missing one is then reported with the names of all others.
        needed = {task.text, task.text_pair} | _answer_columns(task)
        if needed - {None} <= set(dataset.column_names):
            optional = {task.references} if task.kind == "generation" else set()
            dataset = dataset.select_columns([c for c in dataset.column_names if c in needed | optional])
        for index, row in enumerate(dataset):
            yield f"{task.path} {task.splits[split]!r}, row {index}", row

    def _dataset(self, name: str, split: Split) -> datasets.Dataset:
        if (name, split) not in self._loaded:
            task = self._task(name)
            if split not in task.splits:
                raise DataError(
                    f"task {name!r} has no {split} split",
                    got=", ".join(task.splits),
                    expected=split,
                    remedy=f"set tasks.hub.{name}.splits.{split}",
                )
            try:
                loaded = datasets.load_dataset(task.path, task.config_name, split=task.splits[split])
            except (ValueError, OSError, datasets.exceptions.DatasetsError) as failure:
                where = task.path if task.config_name is None else f"{task.path} ({task.config_name})"
                raise DataError(
                    f"task {name!r}: cannot load {where}, split {task.splits[split]!r}",
                    got=f"{type(failure).__name__}: {failure}",
                    expected="a data set that datasets.load_dataset can load",
                    remedy=f"check tasks.hub.{name}, the network and HF_HOME, or use tasks.source=local",
                ) from failure
            self._loaded[name, split] = loaded
        return self._loaded[name, split]


def _answer_columns(task: HubTaskConfig) -> set[str]:
    """Columns of the answer that every row must have."""
    if task.kind == "language_modeling":
        return set()
    return {task.target if task.kind == "generation" else task.label}
