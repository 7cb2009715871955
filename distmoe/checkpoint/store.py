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
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed import ProcessGroup

from distmoe.checkpoint.folders import best, clean, latest, prune, steps
from distmoe.checkpoint.fragments import Fragment, state_dict_of
from distmoe.checkpoint.manifest import FileRecord, Manifest, damage, read_manifest, record_file
from distmoe.checkpoint.rank_state import RankState, read_rank_state, write_rank_state
from distmoe.checkpoint.storage import INDEX_NAME, ShardReader, ShardWriter, read_whole_index, sync_folder, write_json
from distmoe.checkpoint.together import number_of_ranks, rank_of_process, together
from distmoe.errors import CheckpointError, DistmoeError
from distmoe.tasks import TaskGrouping, TaskSet

__all__ = ["LoadedState", "best", "check", "clean", "latest", "load", "prune", "read_fragments", "save", "steps"]

SHARDS, RANKS, TRAINER = "shards", "ranks", "trainer.json"


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
    process_group: ProcessGroup | None = None,
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
        process_group: Over all ranks; None: the world's. A thread beside training needs one of its own.

    Raises:
        CheckpointError: On every rank, if any rank could not write; the last good checkpoint is untouched.
    """
    root = Path(root)
    final, draft = root / f"step_{manifest.step}", root / f"step_{manifest.step}.tmp"
    rank = rank_of_process()
    what, alone = f"step {manifest.step} cannot be saved", number_of_ranks() == 1 and process_group is None

    def prepare() -> None:
        if rank == 0:
            clean(root)
            (draft / SHARDS).mkdir(parents=True)
            (draft / RANKS).mkdir()

    def write_shards() -> None:
        writer = ShardWriter(draft / SHARDS)
        with _dcp(what, alone=alone):
            dcp.save(state_dict_of(fragments), storage_writer=writer, process_group=process_group, no_dist=alone)

    def write_own() -> dict[str, FileRecord]:
        own = draft / RANKS / f"{rank:05d}.safetensors"
        write_rank_state(own, rank_state)
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
                os.replace(final, root / f"step_{manifest.step}.old")
            os.replace(draft, final)
            sync_folder(root)
            clean(root)

    together(prepare, what, root, process_group=process_group)
    together(write_shards, what, root, process_group=process_group)
    records = together(write_own, what, root, process_group=process_group)
    together(lambda: publish(records), what, root, process_group=process_group)
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
    return together(lambda: _check(Path(folder), tasks, grouping, checksums), None, Path(folder))[0]


def _check(folder: Path, tasks: TaskSet, grouping: TaskGrouping | None, checksums: bool) -> Manifest:
    manifest = read_manifest(folder)
    refuse_other_tasks(
        folder, TaskSet.from_json(manifest.tasks), tasks, remedy="train with the same tasks, or start a new run"
    )
    if grouping is not None and TaskGrouping.from_json(manifest.grouping) != grouping:
        raise CheckpointError(
            f"{folder} was written for another task grouping",
            got=manifest.grouping["layers"],
            expected=grouping.to_json()["layers"],
            remedy="set structure.grouping as in the checkpoint, or start a new run",
        )
    for name in sorted(manifest.files)[rank_of_process() :: number_of_ranks()]:
        problem = damage(folder, name, manifest.files[name], checksum=checksums)
        if problem is not None:
            raise CheckpointError(
                f"{folder} is damaged",
                got=problem,
                expected="the files that the manifest lists",
                remedy="resume from another checkpoint of the run",
            )
    if rank_of_process() == 0:
        read_whole_index(folder / SHARDS)
    return manifest


def refuse_other_tasks(folder: Path, stored: TaskSet, tasks: TaskSet, *, remedy: str) -> None:
    """Compares tasks with those of a checkpoint: their order numbers heads and gate rows.

    Args:
        folder: Of the checkpoint, for the error.
        stored: Its tasks.
        tasks: Those that stand for them now.
        remedy: What the user may do.

    Raises:
        CheckpointError: If they differ in anything: names, order, labels, metrics, descriptions.
    """
    if stored.fingerprint == tasks.fingerprint:
        return
    names = " | ".join(stored.names)
    raise CheckpointError(
        f"{folder} was written for another task set",
        got=names if stored.names != tasks.names else f"{names}, with other labels, metrics or descriptions",
        expected=" | ".join(tasks.names),
        remedy=remedy,
    )


def load(folder: Path, *, manifest: Manifest, fragments: list[Fragment]) -> LoadedState:
    """Fills the fragments in place and returns the rest. Collective if there are ranks.

    Args:
        folder: ``step_N``, already passed by :func:`check`.
        manifest: From :func:`check`.
        fragments: What this rank wants; any cut of the same global tensors.

    Raises:
        CheckpointError: On every rank, if the model has other tensors than the checkpoint, more or fewer; before
            anything is filled.
    """
    folder = Path(folder)
    _compare_tensors(folder, manifest, fragments)
    read_fragments(folder, fragments, no_dist=number_of_ranks() == 1)
    return read_rest(folder, manifest)


def read_rest(folder: Path, manifest: Manifest) -> LoadedState:
    """Everything of a checkpoint but weights and moments."""
    path = folder / RANKS / f"{rank_of_process():05d}.safetensors"
    same_world = len(list((folder / RANKS).glob("*.safetensors"))) == number_of_ranks()
    return LoadedState(
        manifest, json.loads((folder / TRAINER).read_text()), read_rank_state(path) if same_world else None
    )


def read_trainer_state(folder: Path) -> dict[str, Any]:
    """What all ranks of the run that wrote a checkpoint had in common.

    Raises:
        CheckpointError: If the folder is not a complete checkpoint.
    """
    read_manifest(folder)
    return dict(json.loads((Path(folder) / TRAINER).read_text()))


def read_fragments(folder: Path, fragments: list[Fragment], *, no_dist: bool) -> None:
    """Reads chunks into fragments; a low-level part of :func:`load` and of consolidation."""
    with _dcp(f"the shards of {folder} cannot be read", alone=no_dist):
        dcp.load(state_dict_of(fragments), storage_reader=ShardReader(Path(folder) / SHARDS), no_dist=no_dist)


def _compare_tensors(folder: Path, manifest: Manifest, fragments: Sequence[Fragment]) -> None:
    """Refuses another model, on all ranks: a rank sees its own fragments, and only all of them make up the model."""
    names = together(lambda: _compare_own(folder, manifest, fragments), None, folder)
    lost = sorted(manifest.tensors.keys() - set().union(*names))
    if lost:
        shown = ", ".join(lost[:4]) + (f" and {len(lost) - 4} more" if len(lost) > 4 else "")
        raise CheckpointError(
            f"{folder} holds more than the model: {len(lost)} of its {len(manifest.tensors)} tensors would be lost",
            got=f"a model without {shown}",
            expected=f"a model with all {len(manifest.tensors)} tensors",
            remedy="build the model with the checkpoint's model section (its config.yaml)",
        )


def _compare_own(folder: Path, manifest: Manifest, fragments: Sequence[Fragment]) -> set[str]:
    """Compares what this rank wants with what is stored, and returns its names."""
    for fragment in fragments:
        part, name = fragment.key.split("/", 1)
        record = manifest.tensors.get(name)
        if record is not None and (part == "frozen") != (record.kind == "frozen"):
            raise CheckpointError(
                f"{folder} was written with other frozen parts: {name!r}",
                got=f"{record.kind} in the checkpoint",
                expected="frozen" if part == "frozen" else "trainable",
                remedy="set model.freeze as in the checkpoint (its config.yaml); tools/edit_tasks.py writes a run with "
                "another model.freeze",
            )
    wanted = {fragment.view.name: fragment.view.global_shape for fragment in fragments}
    stored = {name: record.shape for name, record in manifest.tensors.items()}
    for name, shape in wanted.items():
        if stored.get(name) != shape:
            raise CheckpointError(
                f"{folder} does not fit the model: {name!r}",
                got=stored.get(name, "no such tensor"),
                expected=list(shape),
                remedy="build the model with the checkpoint's model section (its config.yaml)",
            )
    return set(wanted)


@contextmanager
def _dcp(what: str, *, alone: bool) -> Iterator[None]:
    """Turns DCP's exception, which is not even an ``Exception``, into ours, and silences a pointless warning."""
    with _without_warning() if alone else nullcontext():
        try:
            yield
        except dcp.api.CheckpointException as failure:
            rank, (cause, _) = next(iter(failure.failures.items()))
            if isinstance(cause, DistmoeError):
                raise cause from None
            text = str(cause).partition("\n")[0][:300]
            if isinstance(cause, pickle.UnpicklingError):  # torch's own words advise to run the pickle
                text = "something else than a tensor, which was not unpickled"
            raise CheckpointError(
                what,
                got=f"rank {rank}: {type(cause).__name__}: {text}",
                expected="readable files with tensors and nothing else, and room to write",
                remedy="resume from another checkpoint of the run (--resume PATH), or make room",
            ) from failure


@contextmanager
def _without_warning() -> Iterator[None]:
    """Hides that one process saves alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield
