"""Tokenized documents as two arrays: what a worker hands on, and what is appended to an indexed set at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TokenPart:
    """Documents that have text; each has equally many sequences, one or two.

    Attributes:
        ids_T: Token ids of all sequences, one after another, in the number type of the set.
        lengths_N: Tokens of each sequence.
        num_documents: Documents.
    """

    ids_T: npt.NDArray[np.integer]
    lengths_N: npt.NDArray[np.int32]
    num_documents: int

    @classmethod
    def of(cls, documents: Sequence[Sequence[Sequence[int]]], *, dtype: type[np.integer]) -> TokenPart:
        """The documents of :func:`~distmoe.data.indexed.tokens.tokenize_documents`; empty ones are left out.

        Raises:
            OverflowError: If an id does not fit the number type.
        """
        sequences = list(chain.from_iterable(documents))
        lengths_N = np.fromiter(map(len, sequences), dtype=np.int32, count=len(sequences))
        ids_T = np.fromiter(chain.from_iterable(sequences), dtype=dtype, count=int(lengths_N.sum(dtype=np.int64)))
        return cls(ids_T, lengths_N, sum(map(bool, documents)))

    @classmethod
    def join(cls, parts: Sequence[TokenPart]) -> TokenPart:
        """All documents of the parts, in order; at least one part."""
        return cls(
            np.concatenate([part.ids_T for part in parts]),
            np.concatenate([part.lengths_N for part in parts]),
            sum(part.num_documents for part in parts),
        )

    def save(self, path: Path) -> None:
        np.savez(path, ids_T=self.ids_T, lengths_N=self.lengths_N, num_documents=self.num_documents)

    @classmethod
    def load(cls, path: Path) -> TokenPart:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["ids_T"], arrays["lengths_N"], int(arrays["num_documents"]))
