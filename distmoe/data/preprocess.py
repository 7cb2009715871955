"""From texts to token ids, with every truncation counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from distmoe.data.encoded import EncodedSplit
from distmoe.data.example import TaskExample

# Texts per tokenizer call: large enough for its threads, small enough to keep the Python lists short-lived.
_CHUNK = 4096


def encode_split(
    examples: Sequence[TaskExample], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> EncodedSplit:
    """Tokenizes one split; of a pair, the longer text loses tokens first.

    Args:
        examples: At least one; all with or all without ``text_pair``.
        tokenizer: Any Hugging Face tokenizer.
        max_length: Longest sequence in tokens, special tokens included.
    """
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths: list[int] = []
    num_truncated = 0
    for first in range(0, len(examples), _CHUNK):
        rows, row_types, truncated = _encode(examples[first : first + _CHUNK], tokenizer, max_length)
        num_truncated += truncated
        lengths += map(len, rows)
        ids.append(np.fromiter((i for row in rows for i in row), dtype=np.int32))
        if row_types is not None:
            types.append(np.fromiter((i for row in row_types for i in row), dtype=np.int8))
    return EncodedSplit(
        input_ids_T=np.concatenate(ids),
        token_type_ids_T=np.concatenate(types) if types else None,
        starts_N=np.cumsum([0, *lengths[:-1]], dtype=np.int64),
        lengths_N=np.asarray(lengths, dtype=np.int32),
        labels_N=np.asarray([example.label for example in examples], dtype=np.float32),
        num_truncated=num_truncated,
    )


def _encode(
    examples: Sequence[TaskExample], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[list[int]], list[list[int]] | None, int]:
    """Tokenizes without a limit first: only so is it known which texts are too long, with every kind of tokenizer."""
    encoded = _call(examples, tokenizer, None)
    rows, types = list(encoded["input_ids"]), encoded.get("token_type_ids")
    types = None if types is None else list(types)
    long = [index for index, row in enumerate(rows) if len(row) > max_length]
    if long:
        cut = _call([examples[index] for index in long], tokenizer, max_length)
        for position, index in enumerate(long):
            rows[index] = cut["input_ids"][position]
            if types is not None:
                types[index] = cut["token_type_ids"][position]
    return rows, types, len(long)


def _call(examples: Sequence[TaskExample], tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> dict:
    texts = [example.text for example in examples]
    pairs = [example.text_pair for example in examples] if examples[0].text_pair is not None else None
    return tokenizer(
        texts,
        pairs,
        truncation=False if max_length is None else ("longest_first" if pairs is not None else True),
        max_length=max_length,
        return_attention_mask=False,
        verbose=False,
    )
