"""Writes documents as an indexed set, through megatron-core's builder."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from distmoe.data.indexed.files import bin_path, idx_path
from distmoe.data.indexed.library import megatron_data
from distmoe.data.indexed.part import TokenPart
from distmoe.errors import ConfigError

TokenType = Literal["auto", "uint16", "int32"]
_ASIDE_DIGITS = 12


def choose_dtype(name: TokenType, *, vocab_size: int) -> type[np.integer]:
    """The number type of the ids on disk; ``auto`` is megatron-core's choice.

    Raises:
        ConfigError: If the largest id of the vocabulary does not fit: it would become another token silently.
    """
    dtype = megatron_data().DType.optimal_dtype(vocab_size) if name == "auto" else getattr(np, name)
    most = int(np.iinfo(dtype).max) + 1
    if vocab_size > most:
        raise ConfigError(
            "the vocabulary does not fit the number type of the indexed set",
            got=f"{vocab_size} tokens as {np.dtype(dtype).name}",
            expected=f"at most {most} tokens",
            remedy="use --dtype int32 or auto, or a smaller vocabulary",
        )
    return dtype


def remove_leftovers(prefix: str | Path) -> None:
    """Removes what writers of this set left aside when they were killed; no other may be at work."""
    prefix = Path(prefix)
    aside = re.compile(rf"\.{re.escape(prefix.name)}\.[0-9a-f]{{{_ASIDE_DIGITS}}}\.(bin|idx)")
    if prefix.parent.is_dir():
        for path in [path for path in prefix.parent.iterdir() if aside.fullmatch(path.name)]:
            path.unlink(missing_ok=True)


class IndexedWriter:
    """Writes one set aside and puts it in place when all documents are in it, the index last.

    Args:
        prefix: Path without ``.bin`` and ``.idx``.
        dtype: Of the ids.
    """

    def __init__(self, prefix: str | Path, *, dtype: type[np.integer]) -> None:
        self._prefix, self._dtype = Path(prefix), dtype
        self._prefix.parent.mkdir(parents=True, exist_ok=True)
        self._aside = self._prefix.with_name(f".{self._prefix.name}.{uuid.uuid4().hex[:_ASIDE_DIGITS]}")
        self._builder = megatron_data().IndexedDatasetBuilder(str(bin_path(self._aside)), dtype=dtype)
        self.num_documents = self.num_tokens = 0

    def __enter__(self) -> IndexedWriter:
        return self

    def add(self, part: TokenPart) -> None:
        """Adds documents.

        The builder's ``add_document`` converts and writes one document at a time, and its ``add_index`` collects
        garbage after each file; both are dear beside a fast tokenizer. This does what they do for all at once.
        """
        if not part.num_documents:
            return
        assert part.ids_T.dtype == self._dtype, (part.ids_T.dtype, self._dtype)
        first, per_document = len(self._builder.sequence_lengths), len(part.lengths_N) // part.num_documents
        self._builder.data_file.write(part.ids_T.data)
        self._builder.sequence_lengths.extend(part.lengths_N.tolist())
        self._builder.document_indices.extend(
            range(first + per_document, len(self._builder.sequence_lengths) + 1, per_document)
        )
        self.num_documents += part.num_documents
        self.num_tokens += len(part.ids_T)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._builder.finalize(str(idx_path(self._aside)))
                os.replace(bin_path(self._aside), bin_path(self._prefix))
                os.replace(idx_path(self._aside), idx_path(self._prefix))
        finally:
            self._builder.data_file.close()
            for path in (bin_path(self._aside), idx_path(self._aside)):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
