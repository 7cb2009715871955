"""Tokens per second of the preprocessing of indexed sets, relative to a plain loop over the same tokenizer.

::

    python tools/bench/preprocessing.py --tokenizer TOKENIZER --text corpus.txt --workers 2
    python tools/bench/preprocessing.py --tokenizer TOKENIZER --text corpus.txt --documents 1000 --json OUT.json

The texts' paragraphs are repeated, each with its number in front, until there are enough documents. The loop calls the
tokenizer document by document, appends the end token and counts; it writes nothing. Both tokens counts must be equal.
The arms run after each other, several times, and the best of each counts: wall time, which is what several processes
are for, and processor time with that of the workers, which means something on a busy machine too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from distmoe.data.indexed.library import megatron_data
from distmoe.data.indexed.preprocess import PreprocessJob, preprocess
from distmoe.data.sources.documents import read_documents
from distmoe.parallel.cores import usable_cores
from distmoe.tokenization import load_tokenizer


def write_documents(path: Path, texts: list[Path], count: int) -> None:
    """Writes so many documents as JSONL."""
    paragraphs = [one.texts[0] for file in texts for one in read_documents(file, unit="paragraph")]
    with path.open("w", encoding="utf-8") as out:
        for number, paragraph in zip(range(count), itertools.cycle(paragraphs), strict=False):
            out.write(json.dumps({"text": f"{number} {paragraph}"}) + "\n")


def clock() -> tuple[float, float]:
    """Wall seconds, and processor seconds of this process and its children that have ended."""
    return time.perf_counter(), sum(os.times()[:4])


def since(began: tuple[float, float]) -> tuple[float, float]:
    now = clock()
    return now[0] - began[0], now[1] - began[1]


def plain_loop(path: Path, tokenizer_path: Path) -> tuple[int, tuple[float, float]]:
    """Tokens, wall and processor seconds of the obvious loop."""
    began, tokens = clock(), 0
    tokenizer = load_tokenizer(tokenizer_path)
    with path.open(encoding="utf-8") as file:
        for line in file:
            ids = tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
            tokens += len([*ids, tokenizer.eos_token_id])
    return tokens, since(began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE", help=".txt files")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, usable_cores()])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    # One worker is one core, like the loop; without this its batches would be dealt to threads on all cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    megatron_data()  # its import takes seconds, once, and is no part of the rate
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "documents.jsonl"
        write_documents(path, arguments.text, arguments.documents)
        seconds: dict[str, list[tuple[float, float]]] = {}
        counts = set()
        for _ in range(arguments.repeats):
            tokens, taken = plain_loop(path, arguments.tokenizer)
            counts.add(tokens)
            seconds.setdefault("plain loop", []).append(taken)
            for workers in dict.fromkeys(arguments.workers):
                job = PreprocessJob(inputs=(path,), prefix=Path(folder) / "set", tokenizer=arguments.tokenizer)
                began = clock()
                counts.add(preprocess(replace(job, workers=workers), restart=True).num_tokens)
                seconds.setdefault(f"{workers} worker(s)", []).append(since(began))
    assert len(counts) == 1, f"the arms made different tokens: {counts}"
    best = {name: tuple(map(min, zip(*times, strict=True))) for name, times in seconds.items()}
    ratios = {name: [best["plain loop"][kind] / value[kind] for kind in (0, 1)] for name, value in best.items()}
    load = os.getloadavg()[0]
    print(f"{arguments.documents:,} documents, {counts.pop():,} tokens; {platform.machine()}, load {load:.1f}")
    for name, (wall, processor) in ratios.items():
        print(f"{name:12}  x tokens/s of the plain loop: {wall:5.2f} by wall time, {processor:5.2f} by processor time")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratios": ratios, "seconds": seconds, "load": load}, indent=1))


if __name__ == "__main__":
    main()
