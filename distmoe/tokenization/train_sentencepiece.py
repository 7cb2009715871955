"""Trains a SentencePiece model on texts."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from sentencepiece import SentencePieceTrainer

from distmoe.errors import ConfigError, DataError
from distmoe.tokenization.sentencepiece_model import NORMAL, parse_model

# Characters with a meaning of their own: the trainer leaves out lines that contain one.
_RESERVED = re.compile("[\u2581\x00]")
# A unigram path is a sum of scores, in 32-bit floats at SentencePiece and in 64-bit floats at Hugging Face. On this
# grid both sums are exact, up to 2**24 / 64 nats per text (about 30,000 pieces); then ties fall alike, and equal texts
# get equal ids. 1/64 is far below what the scores of two training runs differ by.
_SCORE_GRID = 64


@dataclass(frozen=True, kw_only=True)
class SentencePieceSettings:
    """What kind of model is trained.

    Args:
        vocab_size: Pieces, with special tokens and the 256 byte pieces.
        model_type: ``unigram`` keeps the pieces that explain the texts best; ``bpe`` merges frequent pairs.
        special_tokens: Besides ``<unk> <s> </s> <pad>``; never made from a text.
        text_tokens: Strings that always are one token where a text contains them, for example ``<|user|>``.
        byte_fallback: Characters outside the vocabulary become their bytes; without it they become ``<unk>``.
        character_coverage: Share of the texts' characters that are pieces of their own.
        max_lines: Trains on a sample of so many lines; 0: all of them.
    """

    vocab_size: int
    model_type: Literal["unigram", "bpe"] = "unigram"
    special_tokens: tuple[str, ...] = ()
    text_tokens: tuple[str, ...] = ()
    byte_fallback: bool = True
    character_coverage: float = 0.9995
    max_lines: int = 0


@dataclass(frozen=True)
class TrainedModel:
    """A trained model.

    Attributes:
        model: Content of the ``.model`` file.
        num_lines: Lines that were offered to the trainer.
        num_left_out: Lines with a reserved character (U+2581 or NUL), which cannot be learned from.
    """

    model: bytes
    num_lines: int
    num_left_out: int


def train_sentencepiece(texts: Iterable[str], settings: SentencePieceSettings) -> TrainedModel:
    """Trains on the lines of the texts. Texts are not normalised: every text can be restored from its ids.

    Raises:
        DataError: If there is no text.
        ConfigError: If the texts cannot give that many pieces, or need more.
    """
    lines = _Lines(texts)
    file = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=file,
            vocab_size=settings.vocab_size,
            model_type=settings.model_type,
            byte_fallback=settings.byte_fallback,
            character_coverage=settings.character_coverage,
            control_symbols=list(settings.special_tokens),
            user_defined_symbols=list(settings.text_tokens),
            pad_id=3,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=True,  # numbers are read digit by digit, as in Llama
            # The default would leave out longer lines without a word.
            max_sentence_length=2**30,
            input_sentence_size=settings.max_lines,
            shuffle_input_sentence=settings.max_lines > 0,
            minloglevel=2,
        )
    except (RuntimeError, OSError, ValueError) as failure:
        if not lines.num_offered:
            raise _no_text(lines) from None
        raise _refused(str(failure), settings) from failure
    if not lines.num_offered:
        raise _no_text(lines)
    model = _on_grid(file.getvalue()) if settings.model_type == "unigram" else file.getvalue()
    return TrainedModel(model, lines.num_offered, lines.num_left_out)


class _Lines:
    """Lines of texts, counted while they are read."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.num_offered = self.num_left_out = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            for line in text.split("\n"):
                if _RESERVED.search(line):
                    self.num_left_out += 1
                elif line:
                    self.num_offered += 1
                    yield line


def _on_grid(model: bytes) -> bytes:
    proto = parse_model(model)
    for piece in proto.pieces:
        if piece.type == NORMAL:
            piece.score = round(piece.score * _SCORE_GRID) / _SCORE_GRID
    return proto.SerializeToString()


def _no_text(lines: _Lines) -> DataError:
    return DataError(
        "there is no text to train a tokenizer on",
        got=f"0 lines, and {lines.num_left_out} with a reserved character",
        expected="a line of text or more",
        remedy="check the files and --key, or the recipe's tasks",
    )


def _refused(failure: str, settings: SentencePieceSettings) -> ConfigError:
    """The trainer's own words, with the number that it names."""
    most = re.search(r"value <= (\d+)", failure)
    least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", failure)
    if most:
        expected, remedy = f"--vocab_size of at most {most[1]}", "lower --vocab_size, or train on more text"
    elif least:
        expected = f"--vocab_size of at least {least[1]}"
        remedy = "raise --vocab_size, or lower --character_coverage"
    else:
        expected, remedy = "settings that sentencepiece accepts", "see its message above"
    return ConfigError(
        "sentencepiece cannot train this model",
        got=f"vocab_size={settings.vocab_size}: {' '.join(failure.split())}",
        expected=expected,
        remedy=remedy,
    )
