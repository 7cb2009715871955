"""What a checkpoint is: written last, so a folder with a manifest is complete."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from distmoe.checkpoint.migrations import migrated
from distmoe.checkpoint.storage import write_json
from distmoe.errors import CheckpointError, ConfigError, DataError
from distmoe.tasks import TaskGrouping, TaskSet

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
TENSOR_KINDS = ("trainable", "frozen", "buffer")
_KINDS: dict[str, Any] = {
    "step": int,
    "tasks": list,
    "grouping": dict,
    "config": dict,
    "metrics": dict,
    "score": (int, float, type(None)),
    "optimizer": dict,
    "topology": dict,
}


@dataclass(frozen=True)
class FileRecord:
    size: int
    sha256: str


@dataclass(frozen=True)
class TensorRecord:
    """A global tensor.

    Attributes:
        kind: ``trainable`` (fp32 master weight and two moments), ``frozen`` or ``buffer``.
        shape: Global shape.
        dtype: Of a frozen parameter or buffer; masters are float32.
        added: Whether it stands on top of the backbone: conditional modules and heads.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    added: bool = False


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of ``manifest.json``.

    Attributes:
        format_version: Version of the format; a newer one is refused.
        step: Optimizer steps done.
        tasks: ``TaskSet.to_json()``, ids in order.
        grouping: ``TaskGrouping.to_json()``.
        config: The resolved configuration of the run, as plain values.
        metrics: Scores at this step, for people and for the model card.
        score: Validation macro score that ``keep_best`` and best-model export compare; None: not evaluated.
        optimizer: Adam step, loss scale and whatever else is one number for all ranks.
        topology: Ranks, ep_size, ZeRO stage, precision, placement of the run that wrote it: information only.
        tensors: Every global tensor, by name.
        files: Every other file of the checkpoint, by path inside it, with size and checksum.
    """

    step: int
    tasks: list[dict[str, Any]]
    grouping: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    score: float | None = None
    optimizer: dict[str, Any] = field(default_factory=dict)
    topology: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, TensorRecord] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def write(self, folder: Path) -> None:
        """Writes ``folder/manifest.json`` under another name first, then renames it."""
        draft = folder / f"{MANIFEST_NAME}.draft"
        write_json(draft, asdict(self))
        os.replace(draft, folder / MANIFEST_NAME)


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest of a checkpoint folder.

    Raises:
        CheckpointError: If there is none, it is damaged, of a newer format, or names files outside its folder.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise CheckpointError(
            "this folder is not a complete checkpoint",
            got=f"no {path}",
            expected="a folder step_N with a manifest",
            remedy="name a folder runs/NAME/checkpoints/step_N",
        )
    try:
        values = json.loads(path.read_text())
        values = migrated(values, path=path, current=FORMAT_VERSION)
        values["tensors"] = {
            name: TensorRecord(
                record["kind"], tuple(record["shape"]), record["dtype"], bool(record.get("added", False))
            )
            for name, record in values["tensors"].items()
        }
        values["files"] = {
            name: FileRecord(int(record["size"]), str(record["sha256"])) for name, record in values["files"].items()
        }
        manifest = Manifest(**values)
        _check(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, DataError, ConfigError) as failure:
        raise CheckpointError(
            f"{path} is damaged",
            got=f"{type(failure).__name__}: {failure}",
            expected="a manifest of distmoe",
            remedy="resume from another checkpoint of the run",
        ) from failure
    root = Path(folder).resolve()
    for name in manifest.files:
        # A link may stand anywhere on the way, also in place of a folder: what it resolves to decides.
        place = Path(folder) / name
        if Path(name).is_absolute() or ".." in Path(name).parts or place.resolve() != root / name:
            raise CheckpointError(
                f"{path} names a file outside the checkpoint",
                got=name,
                expected="a path inside the folder, without links",
                remedy="do not load this checkpoint; it was not written by distmoe",
            )
    return manifest


def _check(manifest: Manifest) -> None:
    """Refuses values of another kind than :class:`Manifest` says, which would be a traceback later."""
    for name, kind in _KINDS.items():
        if not isinstance(getattr(manifest, name), kind):
            raise TypeError(f"{name} is {getattr(manifest, name)!r}")
    for name, record in manifest.tensors.items():
        if record.kind not in TENSOR_KINDS:
            raise ValueError(f"tensor {name} is of kind {record.kind!r}")
        if not all(type(length) is int and length >= 0 for length in record.shape):
            raise ValueError(f"tensor {name} has shape {record.shape!r}")
        if not isinstance(getattr(torch, str(record.dtype), None), torch.dtype):
            raise ValueError(f"tensor {name} is of type {record.dtype!r}")
    tasks, grouping = TaskSet.from_json(manifest.tasks), TaskGrouping.from_json(manifest.grouping)
    if grouping.num_tasks != len(tasks):
        raise ValueError(f"{len(tasks)} tasks, and a grouping of {grouping.num_tasks}")


def record_file(path: Path) -> FileRecord:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(path.stat().st_size, digest)


def damage(folder: Path, name: str, record: FileRecord, *, checksum: bool) -> str | None:
    """What is wrong with one file of a checkpoint, or None.

    Args:
        folder: The checkpoint.
        name: Path inside it.
        record: What the manifest says.
        checksum: Also compare contents, which reads the whole file.
    """
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    size = path.stat().st_size
    if size != record.size:
        return f"{name} has {size} bytes instead of {record.size}"
    if checksum and record_file(path).sha256 != record.sha256:
        return f"{name} has another SHA-256 than the manifest says"
    return None
