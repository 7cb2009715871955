"""DCP's file format with its index as JSON instead of a pickle.

A pickle runs code when it is read; an index does not need one. The tensors themselves are read with
``weights_only=True``. One line per chunk would be long; the file lists, per entry, size, type and chunks::

    {"format": 1, "entries": {"fp32/heads.weight": {"size": [3, 8], "dtype": "float32",
        "chunks": [{"offset": [0, 0], "size": [3, 8], "file": "__0_0.distcp", "start": 0, "bytes": 1184}]}}}
"""

from __future__ import annotations

import json
import os
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from distmoe.errors import CheckpointError

INDEX_NAME = "index.json"
_INDEX_FORMAT = 1
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


class ShardWriter(FileSystemWriter):
    """Writes one file per rank and, on the coordinator, the index."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
        self._folder = Path(folder)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Writes the index; DCP calls it once, on the coordinator."""
        places = {result.index: result.storage_data for written in results for result in written}
        entries: dict[str, Any] = {}
        for key, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata), f"{key} is not a tensor"
            chunks = []
            for chunk in entry.chunks:
                place = places[MetadataIndex(key, chunk.offsets)]
                chunks.append(
                    {
                        "offset": list(chunk.offsets),
                        "size": list(chunk.sizes),
                        "file": place.relative_path,
                        "start": place.offset,
                        "bytes": place.length,
                    }
                )
            dtype = str(entry.properties.dtype).removeprefix("torch.")
            entries[key] = {"size": list(entry.size), "dtype": dtype, "chunks": chunks}
        write_json(self._folder / INDEX_NAME, {"format": _INDEX_FORMAT, "entries": entries})


class ShardReader(FileSystemReader):
    """Reads what :class:`ShardWriter` wrote; never unpickles an index.

    Raises:
        CheckpointError: As :func:`read_whole_index`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._entries = read_whole_index(Path(folder))  # here: DCP would turn the error into one of its own

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Returns DCP's metadata, built from the index."""
        places = {}
        tensors: dict[str, Any] = {}
        for key, entry in self._entries.items():
            chunks = []
            for chunk in entry["chunks"]:
                offset = torch.Size(chunk["offset"])
                chunks.append(ChunkStorageMetadata(offsets=offset, sizes=torch.Size(chunk["size"])))
                places[MetadataIndex(key, offset)] = _StorageInfo(chunk["file"], chunk["start"], chunk["bytes"])
            properties = TensorProperties(dtype=_DTYPES[entry["dtype"]])
            tensors[key] = TensorStorageMetadata(properties, torch.Size(entry["size"]), chunks)
        return Metadata(tensors, storage_data=places, storage_meta=StorageMeta())


def read_index(folder: Path) -> dict[str, Any]:
    """Returns the entries of a shard folder's index, checked.

    Raises:
        CheckpointError: If the index is missing, damaged, of a newer format, or points outside its folder.
    """
    path = folder / INDEX_NAME
    try:
        index = json.loads(path.read_text())
        found, entries = index["format"], index["entries"]
        if found != _INDEX_FORMAT:
            raise CheckpointError(
                f"{path} has another format",
                got=found,
                expected=_INDEX_FORMAT,
                remedy="use the version of distmoe that wrote it, or a newer one",
            )
        for key, entry in entries.items():
            _check_entry(path, key, entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as failure:
        raise CheckpointError(
            f"{path} cannot be read",
            got=f"{type(failure).__name__}: {failure}",
            expected="an index of shards",
            remedy="resume from another checkpoint of the run",
        ) from failure
    return entries  # type: ignore[no-any-return]


def read_whole_index(folder: Path) -> dict[str, Any]:
    """As :func:`read_index`, of a shard folder to load from.

    Raises:
        CheckpointError: Also if a tensor lacks a piece, which would keep the values that it had before.
    """
    entries = read_index(folder)
    for key, entry in entries.items():
        found, expected = sum(prod(chunk["size"]) for chunk in entry["chunks"]), prod(entry["size"])
        if found != expected:
            raise CheckpointError(
                f"{folder / INDEX_NAME}: {key} is not complete",
                got=f"chunks of {found:,} elements",
                expected=f"{expected:,} elements",
                remedy="resume from another checkpoint of the run",
            )
    return entries


def _check_entry(path: Path, key: str, entry: dict[str, Any]) -> None:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{key}: unknown type {entry['dtype']!r}")
    _check_numbers(key, "size", entry["size"])
    for chunk in entry["chunks"]:
        _check_numbers(key, "offset", chunk["offset"])
        _check_numbers(key, "size", chunk["size"])
        _check_numbers(key, "place", [chunk["start"], chunk["bytes"]])
        name = chunk["file"]
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise CheckpointError(
                f"{path}: {key} points outside the checkpoint",
                got=name,
                expected="a file name without folders",
                remedy="do not load this checkpoint; it was not written by distmoe",
            )
        if not len(chunk["offset"]) == len(chunk["size"]) == len(entry["size"]):
            raise ValueError(f"{key}: a chunk with another number of dimensions")


def _check_numbers(key: str, what: str, found: Any) -> None:
    if not isinstance(found, list) or not all(type(number) is int and number >= 0 for number in found):
        raise ValueError(f"{key}: {what} {found!r} in place of a list of numbers from 0 up")


def write_json(path: Path, value: object) -> None:
    """Writes JSON and waits until it is on the disk."""
    with path.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Makes renames and new files of a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
