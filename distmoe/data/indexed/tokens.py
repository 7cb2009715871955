"""From documents to the sequences of an indexed set."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distmoe.errors import ConfigError


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token behind every document and target: the tokenizer's end of sequence, else its separator (BERT).

    Raises:
        ConfigError: If it has neither.
    """
    for token_id in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token_id is not None:
            return int(token_id)
    raise ConfigError(
        "the tokenizer has no token that ends a text",
        got="eos_token=null, sep_token=null",
        expected="an eos_token",
        remedy="set eos_token in its tokenizer_config.json",
    )


def tokenize_documents(
    documents: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, *, prompt: str | None
) -> list[list[list[int]]]:
    """Returns the sequences of each document; of an empty one, none.

    Args:
        documents: Texts of each: ``(text,)``, or ``(text, target)``; all alike.
        tokenizer: Plain texts get no special tokens but the end token; prompts get the tokenizer's own.
        prompt: Template of prompts, for pairs; None for plain texts.
    """
    if not documents:
        return []
    end = end_token_id(tokenizer)
    last = _ids(tokenizer, [texts[-1] for texts in documents], special=False)
    if prompt is None:
        return [[[*ids, end]] if ids else [] for ids in last]
    prompts = _ids(tokenizer, [fill_prompt(prompt, texts[0]) for texts in documents], special=True)
    return [
        [first, [*ids, end]] if texts[0] and ids else []
        for texts, first, ids in zip(documents, prompts, last, strict=True)
    ]


def fill_prompt(template: str, text: str) -> str:
    """The template with the text in the place of ``{text}``; other braces stay."""
    return template.replace("{text}", text)


def check_prompt(template: str, *, key: str) -> None:
    """Refuses a template that would make every prompt the same.

    Args:
        template: Of prompts.
        key: What the user set it with, for the message.

    Raises:
        ConfigError: If the template has no ``{text}``.
    """
    if "{text}" not in template:
        raise ConfigError(
            f"{key} has no place for the text",
            got=repr(template),
            expected="a template with {text}",
            remedy=f"put {{text}} into {key}",
        )


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> list[list[int]]:
    def call(some: list[str]) -> list[list[int]]:
        encoded = tokenizer(
            some,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            verbose=False,
        )
        return encoded["input_ids"]

    # transformers makes a dictionary of every text, with offsets: about as dear as the tokens themselves. Where its
    # call only hands texts on, one call sets the library's switches (truncation, padding, special tokens in texts) and
    # the library is asked for all others directly.
    if getattr(type(tokenizer), "_encode_plus", None) is not PreTrainedTokenizerFast._encode_plus:
        return call(texts)
    first = call(texts[:1])
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts[1:], add_special_tokens=special)
    return first + [encoding.ids for encoding in encodings]
