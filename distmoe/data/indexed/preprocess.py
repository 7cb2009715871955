"""Turns files into an indexed set: several processes, resumable, token for token the same whatever their number.

1. The inputs are read in order and cut into parts of equally many documents.
2. Worker processes tokenize whole parts and write each into ``PREFIX.parts``.
3. A call that was killed is repeated: parts that are complete are kept, others written again.
4. The parts are appended in order, the set is put in place, the folder removed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from distmoe.data.indexed.files import SetInfo, exists, read_info, write_info
from distmoe.data.indexed.part import TokenPart
from distmoe.data.indexed.tokens import check_prompt, end_token_id
from distmoe.data.indexed.workers import Pool, Texts, Tokenizing, array_path
from distmoe.data.indexed.writer import IndexedWriter, TokenType, choose_dtype, remove_leftovers
from distmoe.data.sources.documents import Unit, check_file, count_documents, read_documents
from distmoe.errors import ConfigError, DataError
from distmoe.log import get_logger
from distmoe.tokenization import fingerprint, load_tokenizer

_logger = get_logger(__name__)


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
        ConfigError: If the template of prompts has no place for the text, the vocabulary does not fit the number
            type, or there are parts or a set of another job.
        DataError: If an input cannot be read, or no document has text.
    """
    has_targets = len(job.columns) > 1
    if has_targets:
        check_prompt(job.prompt, key="--prompt")
    for path in job.inputs:
        check_file(path)
    tokenizer = load_tokenizer(job.tokenizer)
    dtype = choose_dtype(job.dtype, vocab_size=len(tokenizer))
    blank = SetInfo(
        tokenizer=fingerprint(tokenizer),
        vocab_size=len(tokenizer),
        end_token_id=end_token_id(tokenizer),
        has_targets=has_targets,
        num_documents=0,
        num_empty=0,
        num_tokens=0,
        content=_content(job, np.dtype(dtype).name),
        prompt=job.prompt if has_targets else None,
    )
    parts = Path(f"{job.prefix}.parts")
    if restart:
        _remove(job.prefix, parts)
    elif exists(job.prefix):
        whole = _finished(job.prefix, blank)
        if _is_claimed(parts, blank):  # killed when only the folder was left to be removed
            shutil.rmtree(parts)
        return whole
    _claim(parts, blank)
    infos = _write_parts(job, parts, Tokenizing(tokenizer, blank.prompt, dtype, blank))
    if not any(info.num_documents for info in infos):
        raise DataError(
            "no document has text",
            got=f"{sum(info.num_empty for info in infos)} empty documents in {len(job.inputs)} files",
            expected="one document with text or more",
            remedy="check the files, --key and --unit",
        )
    whole = _sum(blank, infos)
    remove_leftovers(job.prefix)
    with IndexedWriter(job.prefix, dtype=dtype) as writer:
        for index in range(len(infos)):
            writer.add(TokenPart.load(array_path(_part(parts, index))))
        # Before the set is in place: killed in between, it would be taken for another program's.
        write_info(job.prefix, whole)
    shutil.rmtree(parts)
    return whole


def _write_parts(job: PreprocessJob, parts: Path, tokenizing: Tokenizing) -> list[SetInfo]:
    """Returns what each part holds, in order. At most two parts per worker are in memory."""
    infos: dict[int, SetInfo] = {}
    total = sum(count_documents(path, unit=job.unit) for path in job.inputs)
    with tqdm(total=total, unit=" documents", smoothing=0.05) as bar, Pool(job.workers, tokenizing) as pool:
        running: set[Future[tuple[int, SetInfo]]] = set()
        for index, texts in enumerate(_cut(job)):
            done = read_info(_part(parts, index))
            if done is not None and array_path(_part(parts, index)).is_file():
                _count(bar, infos, index, done)
                continue
            running.add(pool.write_part(_part(parts, index), index, texts))
            if len(running) >= 2 * job.workers:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    _count(bar, infos, *future.result())
        for future in running:
            _count(bar, infos, *future.result())
    return [infos[index] for index in range(len(infos))]


def _cut(job: PreprocessJob) -> Iterator[list[Texts]]:
    texts = _texts(job)
    return iter(lambda: list(itertools.islice(texts, job.part_documents)), [])


def _texts(job: PreprocessJob) -> Iterator[Texts]:
    is_told = len(job.columns) < 2  # without targets there is nothing that references could be compared with
    for path in job.inputs:
        for document in read_documents(path, columns=job.columns, unit=job.unit):
            if document.has_references and not is_told:
                is_told = True
                _logger.warning(
                    "%s has references, which an indexed set does not keep: answers are scored against the target "
                    "alone. Use tasks.source=local to score against all of them.",
                    document.where,
                )
            yield document.texts


def _count(bar: tqdm, infos: dict[int, SetInfo], index: int, info: SetInfo) -> None:
    infos[index] = info
    bar.update(info.num_documents + info.num_empty)
    bar.set_postfix_str(f"{sum(one.num_tokens for one in infos.values()):,} tokens", refresh=False)


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
    mark = _mark(parts)
    parts.mkdir(parents=True, exist_ok=True)
    if not mark.is_file():
        mark.write_text(json.dumps(asdict(blank)), encoding="utf-8")
    elif not _is_claimed(parts, blank):
        raise ConfigError(
            f"{parts} holds the parts of another call",
            got="other inputs, tokenizer or settings than now",
            expected="the call that was interrupted",
            remedy="repeat that call, or add --restart to throw its parts away",
        )


def _is_claimed(parts: Path, blank: SetInfo) -> bool:
    """Whether the folder of parts is this job's."""
    mark = _mark(parts)
    return mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == asdict(blank)


def _mark(parts: Path) -> Path:
    return parts / "job.json"


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
    remove_leftovers(prefix)
    for suffix in (".idx", ".json", ".bin"):
        Path(f"{prefix}{suffix}").unlink(missing_ok=True)
