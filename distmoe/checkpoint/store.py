"""Saving, finding, checking and loading checkpoints.

A run's ``checkpoints/`` holds folders ``step_N``, each complete or absent::

    step_120/
      manifest.json          what it is, and size and SHA-256 of every other file; written last
      shards/                weights and moments: torch.distributed.checkpoint chunks of global tensors, index.json
      trainer.json           schedule, sampler, best score: equal on all ranks
      ranks/00000.safetensors  random states and data position of one rank

A save writes ``step_N.tmp`` and renames it at the end, so a killed one leaves only a ``*.tmp`` that nobody reads and
the next save removes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from distmoe.checkpoint.fragments import Fragment, state_dict_of
from distmoe.checkpoint.manifest import MANIFEST_NAME, FileRecord, Manifest, damage, read_manifest, record_file
from distmoe.checkpoint.storage import INDEX_NAME, ShardReader, ShardWriter, sync_folder, write_json
from distmoe.errors import CheckpointError, DistmoeError
from distmoe.log import get_logger
from distmoe.tasks import TaskGrouping, TaskSet

_log = get_logger(__name__)

SHARDS, RANKS, TRAINER = "shards", "ranks", "trainer.json"
_STEP = re.compile(r"step_(\d+)")
_JSON_TENSOR = "__json__"

RankState = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class LoadedState:
    """What a checkpoint gives back besides weights and moments.

    Attributes:
        manifest: Of the checkpoint.
        trainer_state: As handed to :func:`save`.
        rank_state: This rank's, or None if the checkpoint was written by another number of ranks.
    """

    manifest: Manifest
    trainer_state: dict[str, Any]
    rank_state: dict[str, Any] | None


def save(
    root: Path,
    *,
    manifest: Manifest,
    fragments: list[Fragment],
    trainer_state: Mapping[str, Any],
    rank_state: RankState,
) -> Path:
    """Writes ``root/step_N`` and returns it. Collective; all ranks see one file system.

    1. Rank 0 removes what killed saves left and makes ``step_N.tmp``. 2. Every rank writes the chunks that it owns, and
    its own state. 3. Checksums are gathered. 4. Rank 0 writes the manifest, waits for the disk and renames the folder.

    Args:
        root: The run's ``checkpoints/``.
        manifest: All but ``files``, which is filled here.
        fragments: Everything this rank owns; what several ranks own is written once.
        trainer_state: JSON values, equal on all ranks.
        rank_state: This rank's tensors and JSON values.

    Raises:
        CheckpointError: On every rank, if any rank could not write; the last good checkpoint is untouched.
    """
    root = Path(root)
    final, draft = root / f"step_{manifest.step}", root / f"step_{manifest.step}.tmp"
    rank, world = _rank(), _world()

    def prepare() -> None:
        if rank == 0:
            clean(root)
            (draft / SHARDS).mkdir(parents=True)
            (draft / RANKS).mkdir()

    def write_shards() -> None:
        with _quiet_dcp():
            dcp.save(state_dict_of(fragments), storage_writer=ShardWriter(draft / SHARDS), no_dist=world == 1)

    def write_own() -> dict[str, FileRecord]:
        own = draft / RANKS / f"{rank:05d}.safetensors"
        _write_rank_state(own, rank_state)
        paths = [own, *(draft / SHARDS).glob(f"__{rank}_*")]
        if rank == 0:
            write_json(draft / TRAINER, dict(trainer_state))
            paths += [draft / TRAINER, draft / SHARDS / INDEX_NAME]
        return {str(path.relative_to(draft)): record_file(path) for path in paths}

    def publish(records: list[dict[str, FileRecord]]) -> None:
        if rank == 0:
            files = {name: record for part in records for name, record in sorted(part.items())}
            replace(manifest, files=files).write(draft)
            for folder in (draft / SHARDS, draft / RANKS, draft):
                sync_folder(folder)
            if final.exists():  # a resumed run passes the same step again
                os.replace(final, root / f"step_{manifest.step}.old.tmp")
            os.replace(draft, final)
            sync_folder(root)
            clean(root)

    _together(prepare, f"step {manifest.step} cannot be saved", root)
    _together(write_shards, f"step {manifest.step} cannot be saved", root)
    records = _together(write_own, f"step {manifest.step} cannot be saved", root)
    _together(lambda: publish(records), f"step {manifest.step} cannot be saved", root)
    return final


def check(folder: Path, *, tasks: TaskSet, grouping: TaskGrouping | None = None, checksums: bool = True) -> Manifest:
    """Refuses a checkpoint that this run cannot continue, before anything is built. Collective if there are ranks.

    Args:
        folder: ``step_N``.
        tasks: Tasks of the run.
        grouping: Task grouping of the run; None accepts any.
        checksums: Also compare the contents of every file; the ranks share the reading.

    Raises:
        CheckpointError: On every rank; naming the damaged file, or what differs.
    """
    return _together(lambda: _check(Path(folder), tasks, grouping, checksums), None, Path(folder))[0]


def _check(folder: Path, tasks: TaskSet, grouping: TaskGrouping | None, checksums: bool) -> Manifest:
    manifest = read_manifest(folder)
    stored = TaskSet.from_json(manifest.tasks)
    if stored.fingerprint != tasks.fingerprint:
        raise CheckpointError(f"{folder} was written for another task set", got=_tasks_text(stored, tasks),
                              expected=" | ".join(tasks.names), remedy="train with the same tasks, or start a new run")
    if grouping is not None and TaskGrouping.from_json(manifest.grouping) != grouping:
        raise CheckpointError(f"{folder} was written for another task grouping", got=manifest.grouping["layers"],
                              expected=grouping.to_json()["layers"], remedy="set structure.grouping as in the checkpoint, or start a new run")
    for name in sorted(manifest.files)[_rank() :: _world()]:
        problem = damage(folder, name, manifest.files[name], checksum=checksums)
        if problem is not None:
            raise CheckpointError(f"{folder} is damaged", got=problem, expected="the files that the manifest lists",
                                  remedy="resume from another checkpoint of the run")
    return manifest


def load(folder: Path, *, manifest: Manifest, fragments: list[Fragment]) -> LoadedState:
    """Fills the fragments in place and returns the rest. Collective if there are ranks.

    Args:
        folder: ``step_N``, already passed by :func:`check`.
        manifest: From :func:`check`.
        fragments: What this rank wants; any cut of the same global tensors.

    Raises:
        CheckpointError: If the model has other tensors than the checkpoint, before anything is filled.
    """
    folder = Path(folder)
    _compare_tensors(folder, manifest, fragments)
    read_fragments(folder, fragments, no_dist=_world() == 1)
    path = folder / RANKS / f"{_rank():05d}.safetensors"
    same_world = len(list((folder / RANKS).glob("*.safetensors"))) == _world()
    return LoadedState(manifest, json.loads((folder / TRAINER).read_text()), _read_rank_state(path) if same_world else None)


def read_fragments(folder: Path, fragments: list[Fragment], *, no_dist: bool) -> None:
    """Reads chunks into fragments; a low-level part of :func:`load` and of consolidation."""
    with _quiet_dcp():
        dcp.load(state_dict_of(fragments), storage_reader=ShardReader(Path(folder) / SHARDS), no_dist=no_dist)


def steps(root: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = []
    if Path(root).is_dir():
        for path in Path(root).iterdir():
            match = _STEP.fullmatch(path.name)
            if match and (path / MANIFEST_NAME).is_file():
                found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def latest(root: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    found = steps(root)
    return found[-1] if found else None


def best(root: Path) -> Path | None:
    """The checkpoint with the highest score; of equal ones the earliest. None if none was evaluated."""
    scored = [(read_manifest(path).score, path) for path in steps(root)]
    candidates = [(score, path) for score, path in scored if score is not None]
    return max(candidates, key=lambda pair: pair[0])[1] if candidates else None


def prune(root: Path, *, keep_last: int, keep_best: bool) -> list[Path]:
    """Removes old checkpoints and returns what it removed; call it on rank 0, after a save.

    Args:
        root: The run's ``checkpoints/``.
        keep_last: Newest ones that stay.
        keep_best: Whether the best one stays as well.
    """
    kept = set(steps(root)[-keep_last:])
    if keep_best and (champion := best(root)) is not None:
        kept.add(champion)
    removed = [path for path in steps(root) if path not in kept]
    for path in removed:
        # Without its manifest the folder is no checkpoint any more, whatever happens to the rest.
        (path / MANIFEST_NAME).unlink()
        shutil.rmtree(path)
    return removed


def clean(root: Path) -> None:
    """Removes what killed saves and killed prunes left."""
    if not Path(root).is_dir():
        return
    for path in Path(root).iterdir():
        unfinished = path.name.startswith("step_") and path.name.endswith(".tmp")
        if path.is_dir() and (unfinished or (_STEP.fullmatch(path.name) and not (path / MANIFEST_NAME).is_file())):
            _log.info("removing unfinished checkpoint %s", path)
            shutil.rmtree(path)


def _write_rank_state(path: Path, state: RankState) -> None:
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items() if isinstance(value, Tensor)}
    rest = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    tensors[_JSON_TENSOR] = torch.frombuffer(bytearray(json.dumps(rest).encode()), dtype=torch.uint8)
    with path.open("wb") as file:
        file.write(serialize(tensors))
        file.flush()
        os.fsync(file.fileno())


def _read_rank_state(path: Path) -> dict[str, Any]:
    tensors: dict[str, Any] = load_file(path)
    rest = json.loads(bytes(tensors.pop(_JSON_TENSOR).tolist()))
    return tensors | rest


def _compare_tensors(folder: Path, manifest: Manifest, fragments: Sequence[Fragment]) -> None:
    wanted = {fragment.view.name: fragment.view.global_shape for fragment in fragments}
    stored = {name: record.shape for name, record in manifest.tensors.items()}
    for name, shape in wanted.items():
        if stored.get(name) != shape:
            raise CheckpointError(f"{folder} does not fit the model: {name!r}", got=stored.get(name, "no such tensor"),
                                  expected=list(shape), remedy="build the model with the checkpoint's model section (its config.yaml)")


def _tasks_text(stored: TaskSet, tasks: TaskSet) -> str:
    names = " | ".join(stored.names)
    return names if stored.names != tasks.names else f"{names}, with other labels, metrics or descriptions"


def _together(function: Callable[[], T], what: str | None, place: Path) -> list[T]:
    """Runs a function on every rank and gathers its values; raises on all ranks if it failed on any.

    Without it, one full disk would leave the other ranks waiting at the next collective.
    """
    value: T | None = None
    failure: Exception | None = None
    try:
        value = function()
    except Exception as error:
        failure = error
    if failure is not None and not isinstance(failure, DistmoeError):
        failure = CheckpointError(what or f"{place} cannot be read", got=f"rank {_rank()}: {type(failure).__name__}: {failure}",
                                  expected=f"access to {place} and room on its disk",
                                  remedy="correct this and start again with --resume auto; the last complete checkpoint is intact")
    gathered: list[Any] = [(value, failure)]
    if _world() > 1:
        gathered = [None] * _world()
        parts = (failure.what, failure.got, failure.expected, failure.remedy) if isinstance(failure, DistmoeError) else None
        dist.all_gather_object(gathered, (value, parts))
        failed = next((parts for _, parts in gathered if parts is not None), None)
        if failed is not None and failure is None:
            what_text, got, expected, remedy = failed
            failure = CheckpointError(what_text, got=got, expected=expected, remedy=remedy)
    if failure is not None:
        raise failure
    return [value for value, _ in gathered]


@contextmanager
def _quiet_dcp() -> Iterator[None]:
    """DCP warns whenever it works without ranks, which here is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
