"""The tokenizer of an export: read and compared with the model before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distmoe.data.indexed.tokens import end_token_id
from distmoe.errors import CheckpointError

_REMEDY = "name the folder: tools/convert_to_hf.py CHECKPOINT OUT --tokenizer FOLDER"


def read_tokenizer(source: Path, *, vocab_size: int) -> Any:
    """Returns the tokenizer of a folder.

    Args:
        source: Folder of the tokenizer.
        vocab_size: Rows of the model's token table; a padded table has more than the tokenizer has tokens.

    Raises:
        CheckpointError: If the folder holds no tokenizer that transformers can load, or one of more tokens than the
            model knows: their ids would be read beyond the table.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError, KeyError) as failure:
        raise CheckpointError(
            "the tokenizer of the run cannot be loaded",
            got=f"{source}: {str(failure).splitlines()[0]}",
            expected="a folder with the files of a Hugging Face tokenizer",
            remedy=_REMEDY,
        ) from None
    if len(tokenizer) > vocab_size:
        raise CheckpointError(
            "the tokenizer has more tokens than the model",
            got=f"{len(tokenizer)} tokens in {source}",
            expected=f"at most {vocab_size}, the rows of the model's token table",
            remedy=f"{_REMEDY}, the one that the run was trained with",
        )
    return tokenizer


def write_tokenizer(tokenizer: Any, out: Path, *, max_length: int, padding_side: str | None = None) -> None:
    """Saves a tokenizer in today's format, its class included: AutoTokenizer cannot infer it from the model type.

    Args:
        tokenizer: From :func:`read_tokenizer`.
        out: Folder of the export.
        max_length: Most tokens of a text.
        padding_side: Where texts of a batch are filled up; None: as the tokenizer says.
    """
    tokenizer.model_max_length = min(tokenizer.model_max_length, max_length)
    tokenizer.padding_side = padding_side or tokenizer.padding_side
    tokenizer.save_pretrained(out)


def special_tokens(tokenizer: Any | None) -> dict[str, int]:
    """The ids of a tokenizer's first token of a text, if it has one, and of the token that training put behind texts.

    Args:
        tokenizer: The run's, if it is known.

    Returns:
        By the names of config.json.
    """
    if tokenizer is None:
        return {}
    first = getattr(tokenizer, "bos_token_id", None)
    # Without the end token, which is [SEP] for a tokenizer of BERT's kind, transformers would generate to the limit.
    return {"eos_token_id": end_token_id(tokenizer)} | ({"bos_token_id": first} if isinstance(first, int) else {})
