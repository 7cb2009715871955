"""Rows of a local file, with the line that each comes from.

``.jsonl`` (one object a line), ``.csv`` (first row names the columns; all values are strings) and ``.parquet``.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from distmoe.errors import DataError

Row = tuple[str, dict[str, Any]]
SUFFIXES = (".jsonl", ".csv", ".parquet")


def read_rows(path: Path) -> Iterator[Row]:
    """Yields ``(where, columns)`` of every row; ``where`` is ``path:line``, or ``path, row n`` (1-based) for Parquet.

    Raises:
        DataError: If the file cannot be read as what its suffix says.
    """
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    try:
        yield from readers[path.suffix](path)
    except (UnicodeDecodeError, csv.Error, pyarrow.ArrowException) as failure:
        raise DataError(
            f"cannot read {path}",
            got=f"{type(failure).__name__}: {failure}",
            expected=f"a UTF-8 {path.suffix} file",
            remedy="write the file again",
        ) from failure


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                columns = json.loads(line)
            except json.JSONDecodeError as failure:
                raise DataError(
                    f"{where} is not JSON ({failure.msg})",
                    got=line.strip()[:120],
                    expected='one object, for example {"text": "...", "label": 0}',
                    remedy="correct the line",
                ) from failure
            if not isinstance(columns, dict):
                raise DataError(
                    f"{where} is not a JSON object",
                    got=line.strip()[:120],
                    expected='one object, for example {"text": "...", "label": 0}',
                    remedy="correct the line",
                )
            yield where, columns


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a document is longer than the 131,072 characters that csv takes by default
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for columns in reader:
            where = f"{path}:{reader.line_num}"
            if None in columns or None in columns.values():
                got = len([value for key, value in columns.items() if key is not None and value is not None])
                raise DataError(
                    f"{where} has another number of fields than the first row",
                    got=f"{got + len(columns.get(None) or [])} fields",  # type: ignore[call-overload]
                    expected=f"{len(reader.fieldnames or [])} fields ({', '.join(reader.fieldnames or [])})",
                    remedy="quote texts that contain commas or line ends",
                )
            yield where, columns


def _parquet(path: Path) -> Iterator[Row]:
    number = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for columns in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", columns
