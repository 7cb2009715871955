"""What a checkpoint holds, read from its small files alone: no tensor is loaded.

``tools/inspect_checkpoint.py`` prints it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from distmoe.checkpoint.integrity import Integrity, verify
from distmoe.checkpoint.manifest import Manifest, TensorRecord, read_manifest
from distmoe.checkpoint.shares import parameter_shares_of, shares_json
from distmoe.checkpoint.store import TRAINER
from distmoe.nn.conditional.counts import ParameterShares
from distmoe.tasks import TaskGrouping, TaskSet

# Experts, or with unit block the whole layer of a task group: one expert of the layer's width.
_POOL = re.compile(r"(?:encoder|decoder)\.layers\.(\d+)\.(?:feed_forward\.pools|variants)\.g(\d+)\.(.+)")
_PARTS = (
    ("experts", re.compile(r"\.(pools|variants)\.")),
    ("gates", re.compile(r"\.gate\.")),
    ("heads", re.compile(r"^heads\.")),
    ("embeddings", re.compile(r"^(?:encoder|decoder)\.embeddings\.")),
    ("rest", re.compile(r"")),  # attention, dense feed-forward parts, norms, pooler
)


@dataclass(frozen=True)
class Pool:
    """Experts of one task group at one layer.

    Attributes:
        task_group: Its number at the layer.
        tasks: Names of its tasks.
        experts: How many.
        width: Feed-forward width of one expert.
        parameters: Of all of them.
    """

    task_group: int
    tasks: tuple[str, ...]
    experts: int
    width: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A checkpoint at a glance.

    Attributes:
        folder: The checkpoint.
        format_version: Of its manifest.
        step: Optimizer steps done.
        tasks: The run's tasks.
        grouping: Who shares which routed layer.
        routed_layers: Model layer -> its pools.
        parameters: Part of the model -> number of parameters, over all ranks.
        shares: Frozen, trained and added parameters.
        dtypes: Type in the files -> number of tensors; masters and moments are float32 whatever the run computed in.
        topology: Ranks, ZeRO stage, precision and placement that wrote it; any other may read it.
        optimizer: Adam step, skipped steps, loss scale.
        drawn: Training examples drawn so far, by task.
        data: The rest of the data position: window and step in it.
        score: Validation macro score, if it was evaluated at this step.
        bytes_by_file: Size of every file.
        integrity: What the comparison with manifest and index found.
    """

    folder: str
    format_version: int
    step: int
    tasks: TaskSet
    grouping: TaskGrouping
    routed_layers: dict[int, tuple[Pool, ...]]
    parameters: dict[str, int]
    shares: ParameterShares
    dtypes: dict[str, int]
    topology: dict[str, Any]
    optimizer: dict[str, Any]
    drawn: dict[str, int]
    data: dict[str, Any]
    score: float | None
    bytes_by_file: dict[str, int]
    integrity: Integrity

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes_by_file.values())

    def to_json(self) -> dict[str, Any]:
        values = {key: getattr(self, key) for key in self.__dataclass_fields__}
        return values | {
            "tasks": self.tasks.to_json(),
            "grouping": self.grouping.to_json(),
            "routed_layers": {str(i): [asdict(pool) for pool in pools] for i, pools in self.routed_layers.items()},
            "shares": shares_json(self.shares),
            "total_bytes": self.total_bytes,
            "integrity": asdict(self.integrity) | {"intact": self.integrity.intact},
        }


def inspect(folder: Path | str, *, contents: bool = False) -> Inspection:
    """Reads manifest, index and trainer state of a checkpoint.

    Args:
        folder: ``step_N``.
        contents: Also compare the checksum of every file.

    Raises:
        CheckpointError: If the folder is not a complete checkpoint, or its manifest cannot be read.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    integrity = verify(folder, manifest, contents=contents)
    tasks, grouping = TaskSet.from_json(manifest.tasks), TaskGrouping.from_json(manifest.grouping)
    drawn, position = _data_position(folder, tasks)
    return Inspection(
        folder=str(folder),
        format_version=manifest.format_version,
        step=manifest.step,
        tasks=tasks,
        grouping=grouping,
        routed_layers=_pools(manifest.tensors, tasks, grouping),
        parameters=_parameters(manifest.tensors),
        shares=parameter_shares_of(manifest.tensors),
        dtypes=_dtypes(manifest),
        topology=manifest.topology,
        optimizer=manifest.optimizer,
        drawn=drawn,
        data=position,
        score=manifest.score,
        bytes_by_file={name: record.size for name, record in sorted(manifest.files.items())},
        integrity=integrity,
    )


def _data_position(folder: Path, tasks: TaskSet) -> tuple[dict[str, int], dict[str, Any]]:
    """Nothing where the trainer state is damaged: the integrity check names the file."""
    try:
        data = json.loads((folder / TRAINER).read_text())["data"]
        drawn = dict(zip(tasks.names, data["drawn"], strict=True))
        return drawn, {"window": data["window"], "step_in_window": data["step_in_window"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}


def _pools(tensors: Mapping[str, TensorRecord], tasks: TaskSet, grouping: TaskGrouping) -> dict[int, tuple[Pool, ...]]:
    shapes: dict[int, dict[int, dict[str, tuple[int, ...]]]] = {}
    for name, record in tensors.items():
        if match := _POOL.fullmatch(name):
            shapes.setdefault(int(match[1]), {}).setdefault(int(match[2]), {})[match[3]] = record.shape
    found = {}
    for routed_index, layer in enumerate(sorted(shapes)):
        partition = grouping.layers[routed_index]
        found[layer] = tuple(
            Pool(
                task_group,
                tuple(tasks[task].name for task in partition[task_group]),
                parts["w_out"][0] if "w_out" in parts else 1,
                # Gated experts pack two factors into w_in: w_out says the width.
                parts["w_out"][2] if "w_out" in parts else parts["feed_forward.w_out"][1],
                sum(map(prod, parts.values())),
            )
            for task_group, parts in sorted(shapes[layer].items())
        )
    return found


def _parameters(tensors: Mapping[str, TensorRecord]) -> dict[str, int]:
    counts = dict.fromkeys((part for part, _ in _PARTS), 0)
    for name, record in tensors.items():
        if record.kind != "buffer":
            counts[next(part for part, pattern in _PARTS if pattern.search(name))] += prod(record.shape)
    return counts


def _dtypes(manifest: Manifest) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in manifest.tensors.values():
        counts[record.dtype] = counts.get(record.dtype, 0) + 1
    return dict(sorted(counts.items()))
