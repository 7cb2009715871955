"""Processes that tokenize parts of a corpus and write each to a file of its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from distmoe.data.indexed.files import SetInfo, write_info
from distmoe.data.indexed.part import TokenPart
from distmoe.data.indexed.tokens import tokenize_documents

Texts = tuple[str, ...]
# Documents per tokenizer call: so many that the call is free, so few that the library's records are short-lived.
_CHUNK = 512


@dataclass(frozen=True)
class Tokenizing:
    """What is done with every part.

    Attributes:
        tokenizer: Of the set.
        prompt: Template of prompts, for pairs; None for plain texts.
        dtype: Number type of the ids.
        blank: Description of the set without counts.
    """

    tokenizer: PreTrainedTokenizerBase
    prompt: str | None
    dtype: type[np.integer]
    blank: SetInfo

    def write_part(self, prefix: Path, index: int, documents: Sequence[Texts]) -> tuple[int, SetInfo]:
        """Writes ``PREFIX.npz``, then ``PREFIX.json``: a part that has the latter is complete.

        Returns:
            ``index``, and what the part holds.
        """
        part = TokenPart.join(
            [
                TokenPart.of(
                    tokenize_documents(documents[first : first + _CHUNK], self.tokenizer, prompt=self.prompt),
                    dtype=self.dtype,
                )
                for first in range(0, len(documents), _CHUNK)
            ]
        )
        part.save(array_path(prefix))
        info = replace(
            self.blank,
            num_documents=part.num_documents,
            num_empty=len(documents) - part.num_documents,
            num_tokens=len(part.ids_T),
        )
        write_info(prefix, info)
        return index, info


def array_path(prefix: Path) -> Path:
    """The file of a part's tokens."""
    return Path(f"{prefix}.npz")


class Pool:
    """So many processes that write parts; one means this process.

    Args:
        workers: Processes.
        tokenizing: What each part is made with.
    """

    def __init__(self, workers: int, tokenizing: Tokenizing) -> None:
        self._tokenizing = tokenizing
        self._processes: ProcessPoolExecutor | None = None
        if workers > 1:
            # A forked worker has the tokenizer and every import already. It has made no threads yet: they start with
            # the first batch, and none is tokenized here.
            method = "fork" if sys.platform == "linux" else "spawn"
            self._processes = ProcessPoolExecutor(
                workers,
                mp_context=multiprocessing.get_context(method),
                initializer=_start,
                initargs=(tokenizing,),
            )

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        if self._processes is not None:
            self._processes.shutdown()

    def write_part(self, prefix: Path, index: int, documents: Sequence[Texts]) -> Future[tuple[int, SetInfo]]:
        """The result of :meth:`Tokenizing.write_part`, sometime."""
        if self._processes is not None:
            return self._processes.submit(_write_part, prefix, index, documents)
        done: Future[tuple[int, SetInfo]] = Future()
        done.set_result(self._tokenizing.write_part(prefix, index, documents))
        return done


# In a worker process: what it was started with.
_started: list[Tokenizing] = []


def _start(tokenizing: Tokenizing) -> None:
    # Workers are the parallelism; threads inside each would fight for the same cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # What came with the fork stays: looking through it for garbage would only copy its pages.
    gc.freeze()
    _started[:] = [tokenizing]


def _write_part(prefix: Path, index: int, documents: Sequence[Texts]) -> tuple[int, SetInfo]:
    return _started[0].write_part(prefix, index, documents)
