"""Writes the documents of a task as an indexed set, in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from distmoe.data.indexed.files import SetInfo, exists, open_set, read_info, write_info
from distmoe.data.indexed.part import TokenPart
from distmoe.data.indexed.tokens import end_token_id, tokenize_documents
from distmoe.data.indexed.writer import IndexedWriter, choose_dtype
from distmoe.errors import DataError
from distmoe.log import get_logger
from distmoe.tokenization import fingerprint

_logger = get_logger(__name__)
_CHUNK = 1024


def build_set(
    prefix: str | Path, documents: Callable[[], Sequence[tuple[str]]], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Writes the set unless it exists and is whole. Empty documents are left out and counted.

    Args:
        prefix: Path without suffix.
        documents: Called only if the set must be written.
        tokenizer: Of the run.
    """
    if _is_whole(prefix):
        return
    texts = documents()
    digest = hashlib.sha256()
    dtype = choose_dtype("auto", vocab_size=len(tokenizer))
    with IndexedWriter(prefix, dtype=dtype) as writer:
        for first in range(0, len(texts), _CHUNK):
            chunk = texts[first : first + _CHUNK]
            digest.update(repr(chunk).encode())
            writer.add(TokenPart.of(tokenize_documents(chunk, tokenizer, prompt=None), dtype=dtype))
    info = SetInfo(
        tokenizer=fingerprint(tokenizer),
        vocab_size=len(tokenizer),
        end_token_id=end_token_id(tokenizer),
        has_targets=False,
        num_documents=writer.num_documents,
        num_empty=len(texts) - writer.num_documents,
        num_tokens=writer.num_tokens,
        content=digest.hexdigest(),
    )
    write_info(prefix, info)


def _is_whole(prefix: str | Path) -> bool:
    if not exists(prefix):
        return False
    try:
        open_set(prefix)
        return read_info(prefix) is not None
    except DataError as damage:
        _logger.warning("built again: %s", damage)
        return False
