"""Writes documents as an indexed set, through megatron-core's builder."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt

from distmoe.data.indexed.files import bin_path, idx_path
from distmoe.data.indexed.library import megatron_data
from distmoe.errors import ConfigError

TokenType = Literal["auto", "uint16", "int32"]
Ids = npt.NDArray[np.int64]


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


class IndexedWriter:
    """Writes one set aside and puts it in place when all documents are in it, the index last.

    Args:
        prefix: Path without ``.bin`` and ``.idx``.
        dtype: Of the ids.
    """

    def __init__(self, prefix: str | Path, *, dtype: type[np.integer]) -> None:
        self._prefix, self._dtype = Path(prefix), dtype
        self._prefix.parent.mkdir(parents=True, exist_ok=True)
        self._aside = self._prefix.with_name(f".{self._prefix.name}.{uuid.uuid4().hex[:12]}")
        self._builder = megatron_data().IndexedDatasetBuilder(str(bin_path(self._aside)), dtype=dtype)
        self.num_documents = self.num_tokens = 0

    def __enter__(self) -> IndexedWriter:
        return self

    def add(self, sequences: Sequence[Ids]) -> None:
        """Adds a document."""
        lengths = [len(sequence) for sequence in sequences]
        self._builder.add_document(sequences[0] if len(sequences) == 1 else np.concatenate(sequences), lengths)
        self.num_documents += 1
        self.num_tokens += sum(lengths)

    def add_sets(self, prefixes: Iterable[str | Path]) -> None:
        """Adds all documents of other sets, in order."""
        for prefix in prefixes:
            self._builder.add_index(str(prefix))

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
