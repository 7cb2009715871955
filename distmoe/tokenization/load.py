"""Loads a tokenizer from a Hugging Face folder or a SentencePiece model, and gives every tokenizer a fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from distmoe.errors import ConfigError
from distmoe.tokenization.sentencepiece_model import SUFFIX, load_sentencepiece


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a local folder; nothing is downloaded and no code of the folder is run.

    Args:
        folder: Saved by ``save_pretrained``, or a ``.model`` file of SentencePiece, which gives the same ids and the
            same fingerprint as the folder that ``tools/train_tokenizer.py`` writes beside it.

    Raises:
        ConfigError: If the folder is missing, has no tokenizer, or its tokenizer cannot pad.
    """
    if Path(folder).suffix == SUFFIX and Path(folder).is_file():
        return load_sentencepiece(folder)
    if not Path(folder).is_dir():
        raise ConfigError(
            "no such tokenizer folder",
            got=folder,
            expected="a folder saved by save_pretrained, or a .model file of SentencePiece",
            remedy="correct the path (of a run: data.tokenizer or model.pretrained)",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as failure:
        raise ConfigError(
            f"cannot load a tokenizer from {folder}",
            got=f"{type(failure).__name__}: {failure}",
            expected="tokenizer.json, vocab.txt or a SentencePiece model beside its configuration",
            remedy="set data.tokenizer to a folder that has one",
        ) from failure
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"the tokenizer of {folder} has no padding token",
            got="pad_token=null",
            expected="a padding token",
            remedy="set pad_token in its tokenizer_config.json",
        )
    return tokenizer


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of everything that decides which ids a text becomes.

    NOTE: A fast tokenizer remembers the truncation and padding of its last call; both are left out, or the
    fingerprint would change with use.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("truncation", None)
        state.pop("padding", None)
    else:
        state = {
            "vocabulary": tokenizer.get_vocab(),
            "settings": {k: repr(v) for k, v in tokenizer.init_kwargs.items()},
        }
    shape = [
        type(tokenizer).__name__,
        tokenizer.special_tokens_map,
        tokenizer.truncation_side,
        "token_type_ids" in tokenizer.model_input_names,
    ]
    # Only where it is set: the fingerprints of all other tokenizers stay what they were.
    if getattr(tokenizer, "split_special_tokens", False):
        shape.append("split_special_tokens")
    return hashlib.sha256(json.dumps([state, shape], sort_keys=True, default=str).encode()).hexdigest()
