"""Documents for a tokenizer or a language model: plain text files, and the text columns of tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.parquet

from distmoe.data.sources.tables import SUFFIXES, read_rows
from distmoe.errors import DataError

TEXT_SUFFIX = ".txt"
Unit = Literal["file", "paragraph", "line"]


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        where: File and line, or file and row, for messages.
        texts: One text per column that was asked for.
        has_references: Whether a row also names answers that are right (``references``).
    """

    where: str
    texts: tuple[str, ...]
    has_references: bool = False


def read_documents(path: Path, *, columns: Sequence[str] = ("text",), unit: Unit = "file") -> Iterator[Document]:
    """Yields the documents of one file.

    Args:
        path: ``.txt``, or a table (``.jsonl``, ``.csv``, ``.parquet``) of one document a row.
        columns: Columns of a table, each a text.
        unit: What a document of a ``.txt`` file is: the whole file, what stands between blank lines, or a line.

    Raises:
        DataError: If the file cannot be read, or a column is missing or no text.
    """
    check_file(path)
    if path.suffix != TEXT_SUFFIX:
        for where, row in read_rows(path):
            texts = tuple(_text(row, column, where) for column in columns)
            yield Document(where, texts, has_references=bool(row.get("references")))
        return
    if len(columns) > 1:
        raise DataError(
            f"{path} is plain text and has no columns",
            got=", ".join(columns),
            expected="a table (" + ", ".join(SUFFIXES) + ") for pairs of text and target",
            remedy="write the pairs as JSONL, one object a line",
        )
    try:
        yield from _plain(path, unit)
    except UnicodeDecodeError as failure:
        raise DataError(
            f"cannot read {path}", got=str(failure), expected="UTF-8 text", remedy="write the file again in UTF-8"
        ) from failure


def check_file(path: Path) -> None:
    """Refuses a file that is missing or of a kind that cannot be read.

    Raises:
        DataError: Naming the file.
    """
    if path.suffix not in (TEXT_SUFFIX, *SUFFIXES) or not path.is_file():
        raise DataError(
            f"{path} holds no documents",
            got="no such file" if not path.is_file() else f"a {path.suffix or 'nameless'} file",
            expected=f"a file *{TEXT_SUFFIX}, *" + ", *".join(SUFFIXES),
            remedy="correct the path, or convert the file",
        )


def count_documents(path: Path, *, unit: Unit = "file") -> int:
    """How many documents a file has; of lines and rows the number of line ends, which may be too many. For a bar."""
    if path.suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as table:
            return table.metadata.num_rows
    if path.suffix == TEXT_SUFFIX and unit == "file":
        return 1
    with path.open("rb") as file:
        if path.suffix == TEXT_SUFFIX and unit == "paragraph":  # as many as there are lines with text behind none
            return sum(text for text, _ in itertools.groupby(file, key=lambda line: bool(line.strip())))
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _plain(path: Path, unit: Unit) -> Iterator[Document]:
    if unit == "file":
        yield Document(str(path), (path.read_text(encoding="utf-8"),))
        return
    with path.open(encoding="utf-8") as file:
        paragraph: list[str] = []
        first = 1
        for number, line in enumerate(file, 1):
            if unit == "line":
                yield Document(f"{path}:{number}", (line.rstrip("\n"),))
            elif line.strip():
                first = first if paragraph else number
                paragraph.append(line)
            elif paragraph:
                yield Document(f"{path}:{first}", ("".join(paragraph).rstrip("\n"),))
                paragraph = []
        if paragraph:
            yield Document(f"{path}:{first}", ("".join(paragraph).rstrip("\n"),))


def _text(row: dict, column: str, where: str) -> str:
    text = row.get(column)
    if not isinstance(text, str):
        raise DataError(
            f"{where}: column {column!r} is " + ("no text" if column in row else "missing"),
            got=repr(text)[:80] if column in row else ", ".join(map(str, row)) or "no column",
            expected=f"a text in column {column!r}",
            remedy="correct the row, or name another column",
        )
    return text
