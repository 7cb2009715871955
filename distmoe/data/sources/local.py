"""Local tasks: a folder with ``task.json`` is a task without code.

::

    data/stsb/task.json         {"type": "regression", "pair": true, "metric": "pearson", "family": "similarity"}
    data/stsb/train.jsonl       {"text": "Red bus.", "text_pair": "Red double decker bus.", "label": 3.75}
    data/stsb/validation.jsonl
    data/stsb/test.jsonl        optional; without it validation is reported
    data/e2e/task.json          {"type": "generation", "metric": "bleu"}
    data/e2e/train.jsonl        {"text": "name[The Mill]", "target": "The Mill is a pub.", "references": ["...", "..."]}
    data/prose/task.json        {"type": "language_modeling", "metric": "inverse_perplexity"}
    data/prose/train.jsonl      {"text": "A document."}

Splits may be .jsonl, .csv or .parquet. Keys of ``task.json`` that distmoe does not use (licence, origin) are ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distmoe.data.example import TaskExample
from distmoe.data.sources.base import REQUIRED_SPLITS, SPLITS, Split, TaskSource
from distmoe.data.sources.rows import ColumnNames, read_examples
from distmoe.data.sources.tables import SUFFIXES, Row, read_rows
from distmoe.errors import ConfigError, DataError
from distmoe.tasks import TaskSpec

_TASK_FILE = "task.json"
_SECOND_TEXT = "text_pair"


class LocalSource(TaskSource):
    """Task folders under one root; a task's name is its folder's.

    Args:
        root: Folder of task folders. Folders whose name begins with ``_`` or ``.`` are never offered as tasks, but may
            be named, for example ``_ood/imdb_sentences``.

    Raises:
        ConfigError: If ``root`` is not given or is no folder.
    """

    def __init__(self, root: str | None) -> None:
        if root is None or not Path(root).is_dir():
            raise ConfigError(
                "local tasks need a folder of task folders",
                got=f"data.root={root}",
                expected="an existing folder",
                remedy="set data.root, or tasks.source=suite",
            )
        self._root = Path(root)

    @property
    def names(self) -> tuple[str, ...]:
        # A folder with splits and without task.json is offered too, so that it is refused instead of passed over.
        folders = sorted(path for path in self._root.iterdir() if path.is_dir() and path.name[0] not in "._")
        return tuple(folder.name for folder in folders if _looks_like_task(folder))

    def spec(self, name: str) -> TaskSpec:
        folder = self._folder(name)
        values = _read_task_file(folder)
        for key in ("type", "metric"):
            if key not in values:
                raise DataError(
                    f"{folder / _TASK_FILE}: key {key!r} is missing",
                    got=", ".join(values),
                    expected='at least "type" and "metric"',
                    remedy=f'add "{key}"',
                )
        spec = TaskSpec(
            name=name,
            kind=values["type"],
            metric=values["metric"],
            labels=tuple(map(str, values.get("labels") or ())),
            pair=bool(values.get("pair", False)),
            family=values.get("family"),
            description=values.get("description"),
            positive_label=values.get("positive_label", 1),
        )
        self._require_splits(folder, spec)
        return spec

    def splits(self, name: str) -> tuple[Split, ...]:
        folder = self._folder(name)
        return tuple(split for split in SPLITS if _split_file(folder, split) is not None)

    def examples(self, name: str, split: Split) -> list[TaskExample]:
        spec = self.spec(name)
        columns = ColumnNames(text_pair=_SECOND_TEXT if spec.pair else None)
        rows = read_rows(self._file(name, split))
        return read_examples(rows if spec.pair else _single_texts(rows, spec), spec=spec, split=split, columns=columns)

    def fingerprint(self, name: str, split: Split) -> str:
        with self._file(name, split).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _folder(self, name: str) -> Path:
        folder = self._root / name
        if not folder.is_dir():
            raise DataError(
                "no such task folder",
                got=str(folder),
                expected=" | ".join(self.names) or f"no task in {self._root}",
                remedy="correct tasks.names or data.root",
            )
        if not (folder / _TASK_FILE).is_file():
            raise DataError(
                f"folder {folder} is not a task: it has no {_TASK_FILE}",
                got=", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "an empty folder",
                expected=f"{_TASK_FILE} beside train and validation",
                remedy=f"write {folder / _TASK_FILE}, for example "
                '{"type": "classification", "labels": ["no", "yes"], "metric": "accuracy"}',
            )
        return folder

    def _file(self, name: str, split: Split) -> Path:
        file = _split_file(self._folder(name), split)
        if file is None:
            raise _missing_split(self._folder(name), name, split)
        return file

    def _require_splits(self, folder: Path, spec: TaskSpec) -> None:
        for split in REQUIRED_SPLITS:
            if _split_file(folder, split) is None:
                raise _missing_split(folder, spec.name, split)


def _single_texts(rows: Iterable[Row], spec: TaskSpec) -> Iterator[Row]:
    """The rows of a task of one text; a second text, which the task would not read, is refused."""
    for where, row in rows:
        second = row.get(_SECOND_TEXT)
        if second:
            raise DataError(
                f"task {spec.name!r}, {where}: a second text in a task of one text",
                got=f"{_SECOND_TEXT}={second!r}"[:80],
                expected=f"no {_SECOND_TEXT!r}, or an empty one, in a task of type {spec.kind}",
                remedy=_second_text_remedy(spec),
            )
        yield where, row


def _second_text_remedy(spec: TaskSpec) -> str:
    if spec.predicts_tokens:
        return f"join both texts under 'text', or remove {_SECOND_TEXT!r}"
    pair = "write" if spec.is_regression else 'write "type": "pair_classification", or'
    return f'{pair} "pair": true in {_TASK_FILE}, or remove {_SECOND_TEXT!r} from the rows'


def _missing_split(folder: Path, name: str, split: Split) -> DataError:
    return DataError(
        f"task {name!r} has no {split} split",
        got=", ".join(sorted(path.name for path in folder.iterdir())[:8]),
        expected=" | ".join(f"{split}{suffix}" for suffix in SUFFIXES),
        remedy=f"add the file to {folder}, or leave {name!r} out of tasks.names",
    )


def _split_file(folder: Path, split: Split) -> Path | None:
    files = [folder / f"{split}{suffix}" for suffix in SUFFIXES if (folder / f"{split}{suffix}").is_file()]
    if len(files) > 1:
        raise DataError(
            f"{folder} has the {split} split twice",
            got=", ".join(file.name for file in files),
            expected="one file per split",
            remedy="remove all but one of them",
        )
    return files[0] if files else None


def _read_task_file(folder: Path) -> dict[str, Any]:
    path = folder / _TASK_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as failure:
        raise DataError(
            f"{path} is not JSON", got=str(failure), expected="one JSON object", remedy="correct the file"
        ) from failure
    if not isinstance(values, dict):
        raise DataError(
            f"{path} is not a JSON object",
            got=type(values).__name__,
            expected="one JSON object",
            remedy="correct the file",
        )
    return values


def _looks_like_task(folder: Path) -> bool:
    return (folder / _TASK_FILE).is_file() or any(
        (folder / f"{split}{suffix}").is_file() for split in SPLITS for suffix in SUFFIXES
    )
