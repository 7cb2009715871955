"""Tiny tokenizers, documents and indexed sets."""

from __future__ import annotations

import numpy as np

from distmoe.data.indexed.files import bin_path, idx_path
from distmoe.data.indexed.library import megatron_data
from distmoe.tokenization import build_word_tokenizer

WORDS = [f"w{i}" for i in range(40)]
TOKENIZER = build_word_tokenizer(WORDS)
END = TOKENIZER.sep_token_id


def documents(count, *, seed=0, longest=9):
    """Texts of 1 to ``longest`` words."""
    chance = np.random.default_rng(seed)
    return [" ".join(chance.choice(WORDS, size=chance.integers(1, longest + 1))) for _ in range(count)]


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def write_by_megatron(prefix, sequences, *, dtype=np.int32):
    """A set of megatron-core's own builder: one document per sequence."""
    import torch

    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = megatron_data().IndexedDatasetBuilder(str(bin_path(prefix)), dtype=dtype)
    for sequence in sequences:
        builder.add_item(torch.tensor(sequence))
        builder.end_document()
    builder.finalize(str(idx_path(prefix)))
    return str(prefix)
