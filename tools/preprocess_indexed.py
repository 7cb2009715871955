#!/usr/bin/env python3
"""Tokenizes files into an indexed set, PREFIX.bin and PREFIX.idx, that distmoe and megatron-core read.

python tools/preprocess_indexed.py DATA/books_train books/*.txt --tokenizer TOKENIZER --unit paragraph
python tools/preprocess_indexed.py DATA/e2e_train e2e/train.jsonl --tokenizer TOKENIZER --target_key target

Killed, the same call goes on where it was. TOKENIZER is a Hugging Face folder or a SentencePiece .model file.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distmoe import log
from distmoe.data.config import DataConfig
from distmoe.data.indexed.preprocess import PreprocessJob, preprocess
from distmoe.data.indexed.writer import TokenType
from distmoe.data.sources.documents import Unit
from distmoe.errors import DistmoeError
from distmoe.parallel.cores import usable_cores


def parser() -> argparse.ArgumentParser:
    defaults = PreprocessJob(inputs=(), prefix=Path(), tokenizer=Path())
    prompt = DataConfig().prompt
    result = argparse.ArgumentParser(description="Tokenize files into an indexed set.")
    result.add_argument("prefix", type=Path, help="path of the set, without suffix")
    result.add_argument("inputs", type=Path, nargs="+", metavar="FILE", help=".txt, .jsonl, .csv, .parquet")
    result.add_argument("--tokenizer", type=Path, required=True, help="Hugging Face folder, or .model file")
    result.add_argument("--key", default="text", help="text column of tables (default: text)")
    result.add_argument("--target_key", help="column of targets: documents become pairs of prompt and target")
    result.add_argument("--prompt", default=prompt, help="template of prompts, as data.prompt (default: %(default)r)")
    result.add_argument(
        "--unit",
        choices=get_args(Unit),
        default=defaults.unit,
        help="what a document of a .txt file is (default: file)",
    )
    result.add_argument("--dtype", choices=get_args(TokenType), default=defaults.dtype, help="number type of ids")
    result.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: cores)")
    result.add_argument("--part_documents", type=int, default=defaults.part_documents, help="documents per part")
    result.add_argument("--restart", action="store_true", help="throw away what an earlier call has written")
    return result


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    log.configure()
    job = PreprocessJob(
        inputs=tuple(arguments.inputs),
        prefix=arguments.prefix,
        tokenizer=arguments.tokenizer,
        columns=(arguments.key,) if arguments.target_key is None else (arguments.key, arguments.target_key),
        unit=arguments.unit,
        prompt=arguments.prompt,
        dtype=arguments.dtype,
        workers=max(1, arguments.workers),
        part_documents=max(1, arguments.part_documents),
    )
    began = time.monotonic()
    try:
        info = preprocess(job, restart=arguments.restart)
    except DistmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    seconds = time.monotonic() - began
    print(f"{job.prefix}: {info.num_documents:,} documents, {info.num_tokens:,} tokens in {seconds:.1f} s")
    if info.num_empty:
        print(f"left out: {info.num_empty:,} documents without text")
    return 0


if __name__ == "__main__":
    sys.exit(main())
