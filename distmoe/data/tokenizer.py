"""Which tokenizer a run uses."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from distmoe.data.config import DataConfig
from distmoe.data.sources.base import TaskSource
from distmoe.errors import ConfigError
from distmoe.tokenization import build_word_tokenizer, load_tokenizer


def resolve_tokenizer(config: DataConfig, *, pretrained: str | None, source: TaskSource) -> PreTrainedTokenizerBase:
    """Returns ``data.tokenizer``, else the pretrained model's, else a word tokenizer over the source's own vocabulary.

    Raises:
        ConfigError: If none of the three exists.
    """
    folder = config.tokenizer or pretrained
    if folder is not None:
        return load_tokenizer(folder)
    if source.vocabulary is None:
        raise ConfigError(
            "real texts need a tokenizer",
            got="data.tokenizer=null, model.pretrained=null",
            expected="a folder with a Hugging Face tokenizer",
            remedy="set data.tokenizer or model.pretrained",
        )
    return build_word_tokenizer(source.vocabulary)
