"""A SentencePiece model as a Hugging Face tokenizer that gives equal ids, faster and with offsets.

Both libraries search the same segmentation, but disagree in three places, which are settled here:

1. Control, unknown and byte pieces are ordinary vocabulary to Hugging Face's unigram model: the text "</s>" would
   become the end of the sequence. Texts are cut inside such strings before the model sees them.
2. Special tokens in a text are parsed by Hugging Face and never by SentencePiece: ``split_special_tokens``.
3. Normalisation tables (NFKC and the like) are interpreted differently on rare characters: only models without one are
   accepted. Models of Llama's kind and those of ``tools/train_tokenizer.py`` have none.

A BPE merge is chosen by the score of the merged piece; a unigram path by the sum of scores, see
:mod:`distmoe.tokenization.train_sentencepiece` for ties.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distmoe.errors import ConfigError

SUFFIX = ".model"
_UNIGRAM, _BPE = 1, 2
# Types of sentencepiece_model.proto.
NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
# What the two libraries have been seen to disagree on; any text will do, these find a wrong conversion quickly.
_PROBES = (
    "The quick brown fox, 1984.",
    "  two  spaces \n\ttab\r\n ",
    "<s> </s> <unk> <pad> <0x0A>",
    "...........---------- hahahaha aaaaaaaa",
    "e\u0301 \u00e9 \ufb01 \u4e2d\u6587 \u05e9\u05dc\u05d5\u05dd \U0001f469\u200d\U0001f467 \u2581 \u00a0\u3000\u200b",
)


def load_sentencepiece(path: str | Path) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a ``.model`` file.

    Raises:
        ConfigError: If the file is no SentencePiece model, cannot pad, or cannot be converted with equal ids.
    """
    proto = _read(Path(path))
    _check_convertible(proto, path)
    tokenizer = _convert(proto)
    _check_equal(tokenizer, Path(path))
    return tokenizer


def parse_model(content: bytes) -> Any:
    """The message of ``sentencepiece_model.proto``; needs protobuf, so only when a model is read.

    Raises:
        google.protobuf.message.DecodeError: If the bytes are something else.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(content)
    return proto


def _read(path: Path) -> Any:
    from google.protobuf.message import DecodeError

    try:
        proto = parse_model(path.read_bytes())
        readable = len(proto.pieces) > 0
    except (OSError, DecodeError):
        readable = False
    if not readable:
        raise ConfigError(
            f"{path} is no SentencePiece model",
            got=f"{path.stat().st_size} bytes of another format" if path.is_file() else "no such file",
            expected="a .model file of sentencepiece",
            remedy="train one with tools/train_tokenizer.py, or name a Hugging Face tokenizer folder",
        )
    return proto


def _check_convertible(proto: Any, path: str | Path) -> None:
    kind, rule = proto.trainer_spec.model_type, proto.normalizer_spec
    problems = []
    if kind not in (_UNIGRAM, _BPE):
        problems.append("a word or character model")
    if rule.precompiled_charsmap:
        problems.append(f"normalisation {rule.name}")
    if rule.remove_extra_whitespaces:
        problems.append("remove_extra_whitespaces")
    if problems:
        raise ConfigError(
            f"{path} cannot be used with equal ids outside sentencepiece",
            got=", ".join(problems),
            expected="unigram or BPE without normalisation (as Llama's and those of tools/train_tokenizer.py)",
            remedy="set data.tokenizer to the model's Hugging Face folder, or train one with tools/train_tokenizer.py",
        )
    if not any(piece.piece == proto.trainer_spec.pad_piece and piece.type == _CONTROL for piece in proto.pieces):
        raise ConfigError(
            f"the SentencePiece model {path} has no padding token",
            got="pad_id=-1",
            expected="a padding token",
            remedy="train with pad_id, or set pad_token in the tokenizer_config.json of its Hugging Face folder",
        )


def _convert(proto: Any) -> PreTrainedTokenizerFast:
    spec = proto.trainer_spec
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    normal = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
    if spec.model_type == _UNIGRAM:
        model: Any = Unigram(pieces, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
        cuts = _cuts([piece.piece for piece in proto.pieces if piece.type in (_UNKNOWN, _CONTROL, _BYTE)], normal)
    else:
        vocabulary = {piece: index for index, (piece, _) in enumerate(pieces)}
        merges = _merges(normal, vocabulary)
        model = BPE(vocabulary, merges, unk_token=spec.unk_piece, fuse_unk=True, byte_fallback=spec.byte_fallback)
        cuts = []
    result = Tokenizer(model)
    # Where no piece crosses a space, words may be looked up one by one; Llama's pieces of many spaces forbid it.
    by_word = not any("\u2581" in piece[1:] for piece in normal)
    scheme = "first" if proto.normalizer_spec.add_dummy_prefix else "never"
    words = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=by_word)
    result.pre_tokenizer = pre_tokenizers.Sequence([*cuts, words]) if cuts else words
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    result.decoder = decoders.Sequence(steps)
    added = (_UNKNOWN, _CONTROL, _USER_DEFINED)
    result.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type != _USER_DEFINED)
            for piece in proto.pieces
            if piece.type in added
        ]
    )
    names = {"unk_token": spec.unk_piece, "bos_token": spec.bos_piece, "eos_token": spec.eos_piece}
    present = {key: name for key, name in names.items() if any(piece.piece == name for piece in proto.pieces)}
    return PreTrainedTokenizerFast(
        tokenizer_object=result,
        **present,
        pad_token=spec.pad_piece,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _merges(normal: dict[str, float], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best piece first: SentencePiece merges the pair of the best result."""
    ranked = [
        (-score, vocabulary[piece], cut)
        for piece, score in normal.items()
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    pieces = {index: piece for piece, index in vocabulary.items()}
    return [(pieces[index][:cut], pieces[index][cut:]) for _, index, cut in sorted(ranked)]


def _cuts(reserved: list[str], normal: dict[str, float]) -> list[pre_tokenizers.Split]:
    """One cut inside every reserved string, at a place that no normal piece covers.

    Raises:
        ConfigError: If normal pieces cover every place of a reserved string.
    """
    pairs = {piece[place : place + 2] for piece in normal for place in range(len(piece) - 1)}
    patterns = []
    for piece in reserved:
        place = next((k for k in range(1, len(piece)) if piece[k - 1 : k + 1] not in pairs), None)
        if place is None:
            raise ConfigError(
                "a special token can be spelled by ordinary pieces of this unigram model",
                got=f"{piece!r}",
                expected="two neighbouring characters in it that no piece contains",
                remedy="train with other special tokens, or with --model_type bpe",
            )
        patterns.append(f"{re.escape(piece[:place])}(?={re.escape(piece[place:])})")
    return [pre_tokenizers.Split(Regex("|".join(patterns)), "merged_with_previous")]


def _check_equal(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    processor = SentencePieceProcessor(model_file=str(path))
    for probe in _PROBES:
        expected, got = processor.encode(probe), tokenizer(probe, add_special_tokens=False)["input_ids"]
        if got != expected:
            raise ConfigError(
                f"{path} cannot be converted with equal ids",
                got=f"{got[:12]} for {probe!r}",
                expected=f"{expected[:12]}, as sentencepiece",
                remedy="train a model with tools/train_tokenizer.py, or set data.tokenizer to its Hugging Face folder",
            )
