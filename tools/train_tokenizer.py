#!/usr/bin/env python3
"""Trains a SentencePiece model and writes it as OUT/tokenizer.model and as the Hugging Face tokenizer folder OUT.

python tools/train_tokenizer.py OUT --vocab_size 8000 --text corpus.txt more.jsonl
python tools/train_tokenizer.py OUT --vocab_size 8000 --recipe gen_tasks tasks.source=local data.root=DATA

Both forms give equal ids; data.tokenizer takes either. Lines are learned from as they are: nothing is normalised, and
every text can be restored from its ids.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from distmoe import log
from distmoe.data.sources.documents import Unit, check_file, read_documents
from distmoe.errors import ConfigError, DistmoeError
from distmoe.tokenization import fingerprint, load_tokenizer
from distmoe.tokenization.train_sentencepiece import SentencePieceSettings, train_sentencepiece

MODEL_FILE = "tokenizer.model"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description="Train a SentencePiece tokenizer.")
    result.add_argument("out", type=Path, help="folder to write")
    result.add_argument("--vocab_size", type=int, required=True, help="pieces, special tokens and bytes included")
    result.add_argument("--model_type", choices=("unigram", "bpe"), default="unigram")
    result.add_argument("--text", type=Path, nargs="+", default=[], metavar="FILE", help=".txt, .jsonl, .csv, .parquet")
    result.add_argument("--key", default="text", help="text column of tables (default: text)")
    result.add_argument("--unit", choices=get_args(Unit), default="line", help="how .txt files are read (memory only)")
    result.add_argument("--recipe", help="train on the training texts of this recipe's tasks")
    result.add_argument("--special", nargs="+", default=[], metavar="TOKEN", help="tokens that no text is turned into")
    result.add_argument("--text_token", nargs="+", default=[], metavar="TEXT", help="strings that are always one token")
    result.add_argument("--no_byte_fallback", action="store_true", help="unknown characters become <unk>")
    result.add_argument("--character_coverage", type=float, default=0.9995)
    result.add_argument("--max_lines", type=int, default=0, help="train on a sample of so many lines (default: all)")
    result.add_argument("overrides", nargs="*", metavar="section.key=value", help="with --recipe")
    return result


def main(argv: list[str] | None = None) -> int:
    try:
        return _run(parser().parse_intermixed_args(argv))
    except DistmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    log.configure()
    if bool(arguments.text) == bool(arguments.recipe):
        raise ConfigError(
            "a tokenizer is trained on files or on a recipe's tasks",
            got="both" if arguments.text else "neither",
            expected="--text FILE... or --recipe NAME",
            remedy="python tools/train_tokenizer.py --help",
        )
    settings = SentencePieceSettings(
        vocab_size=arguments.vocab_size,
        model_type=arguments.model_type,
        special_tokens=tuple(arguments.special),
        text_tokens=tuple(arguments.text_token),
        byte_fallback=not arguments.no_byte_fallback,
        character_coverage=arguments.character_coverage,
        max_lines=arguments.max_lines,
    )
    texts = _of_tasks(arguments.recipe, arguments.overrides) if arguments.recipe else _of_files(arguments)
    trained = train_sentencepiece(tqdm(texts, unit=" texts", desc="reading"), settings)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / MODEL_FILE
    path.write_bytes(trained.model)
    tokenizer = load_tokenizer(path)
    tokenizer.save_pretrained(str(arguments.out))
    loaded = load_tokenizer(arguments.out)
    assert fingerprint(loaded) == fingerprint(tokenizer), "the folder holds another tokenizer than the model"
    print(f"{arguments.out}: {len(loaded)} tokens ({arguments.model_type}) from {trained.num_lines} lines")
    if trained.num_left_out:
        print(f"left out: {trained.num_left_out} lines with U+2581 or NUL, which SentencePiece reserves")
    return 0


def _of_files(arguments: argparse.Namespace) -> Iterator[str]:
    for path in arguments.text:
        check_file(path)
    for path in arguments.text:
        for document in read_documents(path, columns=(arguments.key,), unit=arguments.unit):
            yield from document.texts


def _of_tasks(recipe: str, overrides: list[str]) -> Iterator[str]:
    from distmoe.data.sources import load_tasks
    from distmoe.recipes.loader import resolve

    config = resolve(recipe, overrides)
    tasks, source = load_tasks(config.tasks, config.data)
    for spec in tasks:
        for example in source.examples(spec.name, "train"):
            yield from example.texts


if __name__ == "__main__":
    sys.exit(main())
