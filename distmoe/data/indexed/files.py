"""An indexed set on disk: PREFIX.bin, PREFIX.idx and, if distmoe wrote it, PREFIX.json.

::

    corpus.bin    token ids of all sequences, one after another (uint16 or int32)
    corpus.idx    length and place of each sequence; which sequences form a document
    corpus.json   {"tokenizer": "9f2c...", "vocab_size": 8000, "end_token_id": 2, "num_documents": 812, ...}

A document of plain text is one sequence and ends with the end-of-document token. A document of a generation task is
two: the prompt, and the target with the end token.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distmoe.data.indexed.library import megatron_data
from distmoe.errors import DataError

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class SetInfo:
    """What ``PREFIX.json`` says; megatron-core does not read it.

    Attributes:
        tokenizer: Fingerprint of the tokenizer.
        vocab_size: Its size; every id is below it.
        end_token_id: The token behind every document.
        has_targets: Whether documents are pairs of prompt and target.
        num_documents: Documents kept.
        num_empty: Documents without text, left out.
        num_tokens: Tokens, end tokens included.
        content: Hash of what the set was made from.
        prompt: Template of the prompts of pairs; None of plain documents, and where an older set does not say.
    """

    tokenizer: str
    vocab_size: int
    end_token_id: int
    has_targets: bool
    num_documents: int
    num_empty: int
    num_tokens: int
    content: str
    prompt: str | None = None
    format: int = FORMAT


def bin_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.idx")


def info_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.json")


def exists(prefix: str | Path) -> bool:
    """Whether the set is complete: the index is put in place last."""
    return bin_path(prefix).is_file() and idx_path(prefix).is_file()


def read_info(prefix: str | Path) -> SetInfo | None:
    """What is known about a set; None for a set of another program.

    Raises:
        DataError: If the file beside the set is not distmoe's.
    """
    path = info_path(prefix)
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}")
        return SetInfo(**values)
    except (ValueError, KeyError, TypeError) as failure:
        raise DataError(
            f"{path} does not describe an indexed set",
            got=f"{type(failure).__name__}: {failure}",
            expected=f"what tools/preprocess_indexed.py writes (format {FORMAT})",
            remedy="remove the file if another program wrote the set, or preprocess again",
        ) from failure


def write_info(prefix: str | Path, info: SetInfo) -> None:
    path = info_path(prefix)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(asdict(info), indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


def open_set(prefix: str | Path) -> Any:
    """megatron-core's ``IndexedDataset``.

    NOTE: Its arrays are views of a mapped file that is closed with it: copy what must outlive it, or Python crashes.

    Raises:
        DataError: If a file is missing, or no index of this format.
    """
    if not exists(prefix):
        present = [str(path) for path in (bin_path(prefix), idx_path(prefix)) if path.is_file()]
        raise DataError(
            f"no indexed set at {prefix}",
            got=f"only {present[0]}" if present else "neither .bin nor .idx",
            expected=f"{bin_path(prefix)} and {idx_path(prefix)}",
            remedy="name the path without .bin or .idx, or write the set with tools/preprocess_indexed.py",
        )
    library = megatron_data()
    try:
        dataset = library.IndexedDataset(str(prefix), multimodal=False, mmap=True)
        size = int(dataset.sequence_lengths.sum(dtype="int64")) * library.DType.size(dataset.index.dtype)
    except (AssertionError, ValueError, OSError) as failure:
        raise DataError(
            f"{idx_path(prefix)} is no index of megatron-core",
            got=f"{type(failure).__name__}: {failure}",
            expected="an index of version 1 with one sequence or more",
            remedy="write the set again",
        ) from failure
    if size != bin_path(prefix).stat().st_size:
        raise DataError(
            f"{bin_path(prefix)} does not fit its index",
            got=f"{bin_path(prefix).stat().st_size} bytes",
            expected=f"{size} bytes, by {idx_path(prefix).name}",
            remedy="copy both files again, or write the set again",
        )
    return dataset
