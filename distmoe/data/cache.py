"""Tokenized splits on disk, one safetensors file each, named by a fingerprint of everything that shaped them.

A file that is missing, truncated, altered or of another format is simply built again; nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from distmoe.data.encoded import EncodedSplit
from distmoe.errors import DataError
from distmoe.log import get_logger
from distmoe.tasks import TaskSet

# Raise it with any change of preprocess.py or of the arrays below.
FORMAT_VERSION = 2
_logger = get_logger(__name__)


def cache_key(
    tasks: TaskSet,
    task_id: int,
    split: str,
    *,
    content: str,
    tokenizer: str,
    max_length: int,
    max_examples: int | None,
    prompt: str | None = None,
) -> str:
    """Returns the name of a split's file.

    The key holds the task's whole spec and its place among the others, the source's content, the tokenizer and every
    limit: a cache that forgot one of them would silently return another run's examples.

    Args:
        tasks: All tasks of the run, in order.
        task_id: The split's task.
        split: Which split, with its shift.
        content: Fingerprint of the raw examples.
        tokenizer: Fingerprint of the tokenizer.
        max_length: Limit of tokens per example.
        max_examples: Limit of examples, or None.
        prompt: Template of a generation task's prompts, else None.
    """
    parts = {
        "format": FORMAT_VERSION,
        "task_id": task_id,
        "tasks": tasks.names,
        "spec": tasks.to_json()[task_id],
        "split": split,
        "content": content,
        "tokenizer": tokenizer,
        "max_length": max_length,
        "max_examples": max_examples,
        "prompt": prompt,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class SplitCache:
    """Saves and loads encoded splits under one folder.

    Raises:
        DataError: If the folder cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            raise DataError(
                "cannot make the cache folder",
                got=f"{folder}: {failure}",
                expected="a folder that can be written",
                remedy="set data.cache_dir",
            ) from failure

    def path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def set_path(self, key: str) -> Path:
        """Path without suffix of the indexed set of this key."""
        return self._folder / key

    def load(self, key: str) -> EncodedSplit | None:
        """Returns the split, or None if there is no intact file of this key."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            if metadata["checksum"] != _checksum(arrays) or metadata["key"] != key:
                raise ValueError("its checksum does not fit")
            return EncodedSplit(
                input_ids_T=arrays["input_ids_T"],
                token_type_ids_T=arrays.get("token_type_ids_T"),
                starts_N=arrays["starts_N"],
                lengths_N=arrays["lengths_N"],
                labels_N=arrays["labels_N"],
                num_truncated=int(metadata["num_truncated"]),
                num_dropped=int(metadata["num_dropped"]),
                prompt_lengths_N=arrays.get("prompt_lengths_N"),
                references=_references(arrays.get("references")),
            )
        except (SafetensorError, OSError, KeyError, ValueError) as failure:
            _logger.warning("cache file %s is damaged (%s) and is built again", path, failure)
            return None

    def save(self, key: str, split: EncodedSplit) -> None:
        """Writes aside, then renames: a reader never sees half a file, and a killed writer leaves none behind."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "input_ids_T": split.input_ids_T,
            "starts_N": split.starts_N,
            "lengths_N": split.lengths_N,
            "labels_N": split.labels_N,
        }
        if split.token_type_ids_T is not None:
            arrays["token_type_ids_T"] = split.token_type_ids_T
        if split.prompt_lengths_N is not None:
            arrays["prompt_lengths_N"] = split.prompt_lengths_N
        if split.references is not None:
            arrays["references"] = np.frombuffer(json.dumps(split.references).encode(), dtype=np.uint8)
        metadata = {
            "key": key,
            "checksum": _checksum(arrays),
            "num_truncated": str(split.num_truncated),
            "num_dropped": str(split.num_dropped),
        }
        aside = self._folder / f".{key}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        try:
            save_file(arrays, aside, metadata=metadata)
            os.replace(aside, self.path(key))
        finally:
            with contextlib.suppress(FileNotFoundError):
                aside.unlink()


def _references(text: npt.NDArray[np.uint8] | None) -> tuple[tuple[str, ...], ...] | None:
    return None if text is None else tuple(map(tuple, json.loads(text.tobytes())))


def _checksum(arrays: dict[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return digest.hexdigest()
