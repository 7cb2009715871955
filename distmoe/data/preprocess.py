"""From texts to token ids, with every truncation counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from distmoe.data.encoded import EncodedSplit
from distmoe.data.example import TaskExample
from distmoe.data.indexed.tokens import tokenize_documents
from distmoe.errors import DataError

Ids = Sequence[int] | npt.NDArray[np.int64]
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


def encode_pairs(
    examples: Sequence[TaskExample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    prompt: str,
    where: str,
) -> EncodedSplit:
    """Tokenizes one split of a generation task: prompt, target, end token.

    Args:
        examples: At least one; all with a target.
        tokenizer: Gives prompts its own special tokens, targets only the end token.
        max_length: Longest sequence in tokens.
        prompt: Template of the prompt.
        where: Task and split, for messages.

    Raises:
        DataError: If a text or a target is empty.
    """
    pairs: list[list[list[int]]] = []
    for first in range(0, len(examples), _CHUNK):
        texts = [(one.text, one.target or "") for one in examples[first : first + _CHUNK]]
        pairs += tokenize_documents(texts, tokenizer, prompt=prompt)
    empty = next((index for index, pair in enumerate(pairs) if not pair), None)
    if empty is not None:
        raise DataError(
            f"{where}, example {empty}: text or target has no token",
            got=repr((examples[empty].text[:60], (examples[empty].target or "")[:60])),
            expected="both with one token or more",
            remedy="correct or remove the row",
        )
    return join_pairs(pairs, [one.references for one in examples], max_length=max_length)


def join_pairs(
    pairs: Sequence[Sequence[Ids]], references: Sequence[tuple[str, ...]], *, max_length: int
) -> EncodedSplit:
    """Puts pairs of prompt and target ids into the arrays of a split.

    Of a pair that is too long, the prompt loses tokens at its beginning until one is left, then the target at its end.
    Cut targets have no end token: the model is not taught to stop there.
    """
    prompts = np.array([len(prompt) for prompt, _ in pairs], dtype=np.int64)
    totals = prompts + np.array([len(target) for _, target in pairs], dtype=np.int64)
    kept = np.maximum(1, prompts - np.maximum(0, totals - max_length))
    rows = [
        np.concatenate([prompt[len(prompt) - length :], target])[:max_length]
        for (prompt, target), length in zip(pairs, kept.tolist(), strict=True)
    ]
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    return EncodedSplit(
        input_ids_T=np.concatenate(rows).astype(np.int32),
        token_type_ids_T=None,
        starts_N=np.cumsum([0, *lengths[:-1]], dtype=np.int64),
        lengths_N=lengths,
        labels_N=np.zeros(len(rows), dtype=np.float32),
        num_truncated=int((totals > max_length).sum()),
        prompt_lengths_N=kept.astype(np.int32),
        references=tuple(tuple(one) for one in references),
    )
