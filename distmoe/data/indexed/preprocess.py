"""Turns files into an indexed set: several processes, resumable, token for token the same whatever their number.

1. The inputs are read in order and cut into parts of equally many documents.
2. Worker processes tokenize whole parts and write each as a small indexed set in ``PREFIX.parts``.
3. A call that was killed is repeated: parts that are complete are kept, others written again.
4. The parts are joined in order, the set is put in place, the folder removed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from distmoe.data.indexed.files import SetInfo, exists, read_info, write_info
from distmoe.data.indexed.tokens import end_token_id, tokenize_documents
from distmoe.data.indexed.writer import IndexedWriter, TokenType, choose_dtype
from distmoe.data.sources.documents import Document, Unit, check_file, count_documents, read_documents
from distmoe.errors import ConfigError, DataError
from distmoe.tokenization import fingerprint, load_tokenizer

# Documents per tokenizer call of a worker.
_CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class PreprocessJob:
    """What shall be made of what.

    Args:
        inputs: Files; their order is the order of the documents.
        prefix: Path of the set, without suffix.
        tokenizer: Folder or ``.model`` file.
        columns: Text column of tables; with a second one, documents are pairs of prompt and target.
        unit: What a document of a ``.txt`` file is.
        prompt: Template of prompts, for pairs.
        dtype: Number type of the ids.
        workers: Processes.
        part_documents: Documents per part: what a killed call loses at most, per worker.
    """

    inputs: tuple[Path, ...]
    prefix: Path
    tokenizer: Path
    columns: tuple[str, ...] = ("text",)
    unit: Unit = "file"
    prompt: str = "{text}\n"
    dtype: TokenType = "auto"
    workers: int = 1
    part_documents: int = 5000


def preprocess(job: PreprocessJob, *, restart: bool = False) -> SetInfo:
    """Writes the set, or goes on where a call with the same job was killed; a finished one is left as it is.

    Args:
        job: What to do.
        restart: Throws away what another call has left, also a finished set.

    Raises:
        ConfigError: If the vocabulary does not fit the number type, or there are parts or a set of another job.
        DataError: If an input cannot be read, or no document has text.
    """
    for path in job.inputs:
        check_file(path)
    tokenizer = load_tokenizer(job.tokenizer)
    dtype = choose_dtype(job.dtype, vocab_size=len(tokenizer))
    blank = SetInfo(
        tokenizer=fingerprint(tokenizer),
        vocab_size=len(tokenizer),
        end_token_id=end_token_id(tokenizer),
        has_targets=len(job.columns) > 1,
        num_documents=0,
        num_empty=0,
        num_tokens=0,
        content=_content(job, np.dtype(dtype).name),
    )
    parts = Path(f"{job.prefix}.parts")
    if restart:
        _remove(job.prefix, parts)
    elif exists(job.prefix):
        return _finished(job.prefix, blank)
    _claim(parts, blank)
    infos = _write_parts(job, parts, blank, dtype, tokenizer)
    if not any(info.num_documents for info in infos):
        raise DataError(
            "no document has text",
            got=f"{sum(info.num_empty for info in infos)} empty documents in {len(job.inputs)} files",
            expected="one document with text or more",
            remedy="check the files, --key and --unit",
        )
    with IndexedWriter(job.prefix, dtype=dtype) as writer:
        writer.add_sets(_part(parts, index) for index, info in enumerate(infos) if info.num_documents)
    whole = _sum(blank, infos)
    write_info(job.prefix, whole)
    shutil.rmtree(parts)
    return whole


def _write_parts(
    job: PreprocessJob, parts: Path, blank: SetInfo, dtype: type[np.integer], tokenizer: PreTrainedTokenizerBase
) -> list[SetInfo]:
    """Returns what each part holds, in order. At most two parts per worker are in memory."""
    infos: dict[int, SetInfo] = {}
    total = sum(count_documents(path, unit=job.unit) for path in job.inputs)
    with tqdm(total=total, unit=" documents", smoothing=0.05) as bar, _workers(job, tokenizer) as pool:
        running: set[Future[tuple[int, SetInfo]]] = set()
        for index, documents in enumerate(_cut(job)):
            done = read_info(_part(parts, index))
            if done is not None:
                _count(bar, infos, index, done)
                continue
            running.add(pool.submit(_write_part, _part(parts, index), index, documents, blank, dtype))
            if len(running) >= 2 * job.workers:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    _count(bar, infos, *future.result())
        for future in running:
            _count(bar, infos, *future.result())
    return [infos[index] for index in range(len(infos))]


def _cut(job: PreprocessJob) -> Iterator[list[Document]]:
    documents = itertools.chain.from_iterable(
        read_documents(path, columns=job.columns, unit=job.unit) for path in job.inputs
    )
    return iter(lambda: list(itertools.islice(documents, job.part_documents)), [])


def _count(bar: tqdm, infos: dict[int, SetInfo], index: int, info: SetInfo) -> None:
    infos[index] = info
    bar.update(info.num_documents + info.num_empty)
    bar.set_postfix_str(f"{sum(one.num_tokens for one in infos.values()):,} tokens", refresh=False)


class _InProcess:
    """A pool of no process, for one worker."""

    def __enter__(self) -> _InProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, function: Any, *arguments: Any) -> Future:
        future: Future = Future()
        future.set_result(function(*arguments))
        return future


def _workers(job: PreprocessJob, tokenizer: PreTrainedTokenizerBase) -> ProcessPoolExecutor | _InProcess:
    prompt = job.prompt if len(job.columns) > 1 else None
    if job.workers == 1:
        _worker["tokenizer"], _worker["prompt"] = tokenizer, prompt
        return _InProcess()
    # A forked worker need not import everything anew; the tokenizer has not made threads before the first batch.
    method = "fork" if sys.platform == "linux" else "spawn"
    return ProcessPoolExecutor(
        job.workers,
        mp_context=multiprocessing.get_context(method),
        initializer=_start,
        initargs=(job.tokenizer, prompt),
    )


# What a process that writes parts works with.
_worker: dict[str, Any] = {}


def _start(tokenizer: Path, prompt: str | None) -> None:
    # Workers are the parallelism; threads inside each would fight for the same cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker["tokenizer"], _worker["prompt"] = load_tokenizer(tokenizer), prompt


def _write_part(
    prefix: Path, index: int, documents: list[Document], blank: SetInfo, dtype: type[np.integer]
) -> tuple[int, SetInfo]:
    tokenizer: PreTrainedTokenizerBase = _worker["tokenizer"]
    with IndexedWriter(prefix, dtype=dtype) as writer:
        for first in range(0, len(documents), _CHUNK):
            texts = [document.texts for document in documents[first : first + _CHUNK]]
            for sequences in tokenize_documents(texts, tokenizer, prompt=_worker["prompt"]):
                if sequences:
                    writer.add(sequences)
    info = replace(
        blank,
        num_documents=writer.num_documents,
        num_empty=len(documents) - writer.num_documents,
        num_tokens=writer.num_tokens,
    )
    write_info(prefix, info)  # last: a part with it is complete
    return index, info


def _part(parts: Path, index: int) -> Path:
    return parts / f"part-{index:06d}"


def _sum(blank: SetInfo, infos: list[SetInfo]) -> SetInfo:
    return replace(
        blank,
        num_documents=sum(info.num_documents for info in infos),
        num_empty=sum(info.num_empty for info in infos),
        num_tokens=sum(info.num_tokens for info in infos),
    )


def _content(job: PreprocessJob, dtype: str) -> str:
    """Hash of everything that decides which tokens the set has, and how it is cut into parts."""
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in job.inputs]
    prompt = job.prompt if len(job.columns) > 1 else None
    what = [files, job.columns, job.unit, prompt, dtype, job.part_documents]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _claim(parts: Path, blank: SetInfo) -> None:
    """Marks the folder of parts as this job's, or finds it to be."""
    mark = parts / "job.json"
    parts.mkdir(parents=True, exist_ok=True)
    if mark.is_file():
        if json.loads(mark.read_text(encoding="utf-8")) != asdict(blank):
            raise ConfigError(
                f"{parts} holds the parts of another call",
                got="other inputs, tokenizer or settings than now",
                expected="the call that was interrupted",
                remedy="repeat that call, or add --restart to throw its parts away",
            )
        return
    mark.write_text(json.dumps(asdict(blank)), encoding="utf-8")


def _finished(prefix: Path, blank: SetInfo) -> SetInfo:
    info = read_info(prefix)
    if info is None or (info.content, info.tokenizer) != (blank.content, blank.tokenizer):
        raise ConfigError(
            f"there is an indexed set at {prefix} already",
            got="a set of another program" if info is None else "a set of other inputs, tokenizer or settings",
            expected="no set, or the one that this call makes",
            remedy="choose another path, or add --restart to write it anew",
        )
    return info


def _remove(prefix: Path, parts: Path) -> None:
    shutil.rmtree(parts, ignore_errors=True)
    for suffix in (".idx", ".json", ".bin"):
        Path(f"{prefix}{suffix}").unlink(missing_ok=True)
