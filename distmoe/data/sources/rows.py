"""From named columns to a checked :class:`TaskExample`; shared by local files and the hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from distmoe.data.example import TaskExample
from distmoe.data.sources.base import Split
from distmoe.data.sources.labels import read_label
from distmoe.errors import DataError
from distmoe.tasks import TaskSpec


@dataclass(frozen=True)
class ColumnNames:
    """Where a task's fields stand; ``text_pair`` is None for tasks of one text.

    ``label`` is read for classes and numbers, ``target`` and ``references`` for generation; ``references`` (a list of
    texts) may be missing from a row, which then has its target as the only one.
    """

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    target: str = "target"
    references: str = "references"


def read_examples(
    rows: Iterable[tuple[str, Mapping[str, Any]]], *, spec: TaskSpec, split: Split, columns: ColumnNames
) -> list[TaskExample]:
    """Returns the examples of one split.

    Raises:
        DataError: If there is no row, a column is missing, a text is not a string, or a label does not fit.
    """
    read = _read_tokens if spec.predicts_tokens else _read_labelled
    examples = [read(row, columns, spec, where) for where, row in rows]
    if not examples:
        raise DataError(
            f"task {spec.name!r}: split {split!r} is empty",
            got="0 examples",
            expected="1 example or more",
            remedy=f"fill the split, remove it (only test may be missing), or leave {spec.name!r} out of tasks.names",
        )
    return examples


def _read_labelled(row: Mapping[str, Any], columns: ColumnNames, spec: TaskSpec, where: str) -> TaskExample:
    return TaskExample(
        _text(row, columns.text, spec, where),
        None if columns.text_pair is None else _text(row, columns.text_pair, spec, where),
        read_label(_column(row, columns.label, spec, where), spec, where),
    )


def _read_tokens(row: Mapping[str, Any], columns: ColumnNames, spec: TaskSpec, where: str) -> TaskExample:
    text = _text(row, columns.text, spec, where)
    if spec.kind == "language_modeling":
        return TaskExample(text, None, 0)
    target = _text(row, columns.target, spec, where)
    references = row.get(columns.references) or [target]
    if not isinstance(references, list) or not all(isinstance(one, str) for one in references):
        raise DataError(
            f"task {spec.name!r}, {where}: {columns.references!r} is no list of texts",
            got=repr(references)[:80],
            expected="a list of strings, or no such column",
            remedy="correct or remove it",
        )
    return TaskExample(text, None, 0, target, tuple(references))


def _column(row: Mapping[str, Any], column: str, spec: TaskSpec, where: str) -> Any:
    if column not in row:
        raise DataError(
            f"task {spec.name!r}, {where}: column {column!r} is missing",
            got=", ".join(map(str, row)) or "no column",
            expected=f"a column {column!r}",
            remedy="add or rename the column, or correct the task's description",
        )
    return row[column]


def _text(row: Mapping[str, Any], column: str, spec: TaskSpec, where: str) -> str:
    text = _column(row, column, spec, where)
    if not isinstance(text, str):
        raise DataError(
            f"task {spec.name!r}, {where}: {column!r} is not a text",
            got=repr(text),
            expected="a string",
            remedy="correct or remove the row",
        )
    return text
