"""One set of safetensors files with an index: for programs that read whole tensors and know nothing of chunks.

No run needs it: any topology reads a checkpoint as it is. Files are written one by one, so that memory holds one file's
tensors at a time::

    OUT/model-00001-of-00002.safetensors      encoder.embeddings.norm.bias, ...
    OUT/model.safetensors.index.json          {"metadata": {"total_size": ...}, "weight_map": {name: file}}
    OUT/exp_avg-..., OUT/exp_avg_sq-...       Adam's moments, each with an index of its own, if asked for
    OUT/checkpoint.json                       step, tasks, task grouping, configuration
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distmoe.checkpoint.consolidate import Part, read_moments, read_weights
from distmoe.checkpoint.hf_folder import write_tensors
from distmoe.checkpoint.integrity import refuse_damage
from distmoe.checkpoint.manifest import Manifest, read_manifest
from distmoe.checkpoint.new_folder import new_folder, refuse_content
from distmoe.checkpoint.storage import write_json

DESCRIPTION = "checkpoint.json"
STEMS: dict[Part, str] = {"fp32": "model", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


@dataclass(frozen=True)
class SafetensorsSet:
    """What :func:`write_set` wrote.

    Attributes:
        folder: Where.
        files: Name -> bytes.
        tensors: How many.
    """

    folder: Path
    files: dict[str, int]
    tensors: int


def write_set(
    checkpoint: Path | str,
    out: Path | str,
    *,
    moments: bool = False,
    dtype: torch.dtype = torch.float32,
    file_bytes: int = 4 << 30,
    progress: Callable[[str, int], None] = lambda name, size: None,
) -> SafetensorsSet:
    """Writes a checkpoint's whole tensors, on one process. The folder appears under its name when it is complete.

    Args:
        checkpoint: A folder ``step_N``; every file is compared with its checksum first.
        out: A new or empty folder.
        moments: Also both Adam moments (float32, whatever ``dtype`` is): three times the size.
        dtype: Of the parameters; buffers keep theirs.
        file_bytes: A file is closed before it would become larger; a larger tensor has a file of its own.
        progress: Called after each file with its name and size.

    Raises:
        CheckpointError: If the checkpoint is incomplete or damaged, or ``out`` holds something.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    refuse_content(out, "the consolidated files")
    manifest = read_manifest(checkpoint)
    refuse_damage(checkpoint, manifest)
    written = 0
    parts: tuple[Part, ...] = ("fp32", "exp_avg", "exp_avg_sq") if moments else ("fp32",)
    with new_folder(out) as draft:
        for part in parts:
            written += _write_part(checkpoint, draft, manifest, part, dtype, file_bytes, progress)
        description = {"step": manifest.step, "tasks": manifest.tasks, "grouping": manifest.grouping}
        write_json(draft / DESCRIPTION, description | {"config": manifest.config, "optimizer": manifest.optimizer})
    return SafetensorsSet(out, {path.name: path.stat().st_size for path in sorted(out.iterdir())}, written)


def _write_part(
    checkpoint: Path,
    draft: Path,
    manifest: Manifest,
    part: Part,
    dtype: torch.dtype,
    file_bytes: int,
    progress: Callable[[str, int], None],
) -> int:
    sizes = {name: _bytes_of(record, dtype if part == "fp32" else torch.float32)
             for name, record in manifest.tensors.items()
             if part == "fp32" or record.kind == "trainable"}  # fmt: skip
    shares = list(_shares(sizes, file_bytes))
    stem = STEMS[part]
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shares, start=1):
        file = f"{stem}-{number:05d}-of-{len(shares):05d}.safetensors"
        tensors = _read(checkpoint, part, names)
        if part == "fp32":
            tensors = {
                name: value if manifest.tensors[name].kind == "buffer" else value.to(dtype)
                for name, value in tensors.items()
            }
        write_tensors(draft / file, tensors)
        weight_map |= dict.fromkeys(names, file)
        progress(file, (draft / file).stat().st_size)
    index: Mapping[str, Any] = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    write_json(draft / f"{stem}.safetensors.index.json", index)
    return len(weight_map)


def _read(checkpoint: Path, part: Part, names: list[str]) -> dict[str, Tensor]:
    chosen = set(names)
    if part == "fp32":
        return read_weights(checkpoint, wanted=chosen.__contains__)
    return read_moments(checkpoint, part, wanted=chosen.__contains__)


def _bytes_of(record: Any, dtype: torch.dtype) -> int:
    own = getattr(torch, record.dtype) if record.kind == "buffer" else dtype
    return prod(record.shape) * own.itemsize


def _shares(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Consecutive names whose sizes add up to at most ``limit``, or one larger name alone."""
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > limit:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names
