"""Checkpoints written beside training, on two ranks that each own half of a tensor; no DeepSpeed."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import torch

from distmoe.checkpoint import folders, store
from distmoe.checkpoint.consolidate import read_weights
from distmoe.checkpoint.fragments import Fragment
from distmoe.checkpoint.global_view import replicated
from distmoe.checkpoint.manifest import Manifest, TensorRecord, read_manifest
from distmoe.checkpoint.saver import Saver
from distmoe.errors import CheckpointError
from distmoe.parallel.process_groups import create_background
from tests.distributed.harness import run_ranks
from tests.unit.checkpoint.test_store import GROUPING, TASKS

LIMIT = 60.0


class _Held:
    """``store.save`` that waits until it is let go."""

    def __init__(self) -> None:
        self.free, self._save = threading.Event(), store.save

    def __call__(self, *args: Any, **values: Any) -> Path:
        assert self.free.wait(LIMIT)
        return self._save(*args, **values)


def _save(saver: Any, root: Path, step: int, data: torch.Tensor, rank: int, **more: Any) -> Path:
    tensors = {"w": TensorRecord("trainable", (8,), "float32")}
    view = replicated("w", (8,))
    return saver.save(
        root,
        manifest=Manifest(step=step, tasks=TASKS.to_json(), grouping=GROUPING.to_json(), tensors=tensors),
        fragments=[Fragment(f"{part}/w", view, 4 * rank, data) for part in ("fp32", "exp_avg", "exp_avg_sq")],
        trainer_state=more.pop("trainer_state", {"step": step}),
        rank_state={"rank": rank},
        **more,
    )


def beside_training(rank: int, folder: str) -> dict[str, Any]:
    """All of it in one start of the ranks."""
    root = Path(folder)
    said: list[str] = []
    data, state = torch.arange(4.0) + 4 * rank, {"window": [1, 2]}
    at_once = Saver(keep=lambda _: None)
    expected = read_manifest(_save(at_once, root / "at once", 1, data, rank, trainer_state=state))

    real, held = store.save, _Held()
    store.save = held  # type: ignore[assignment]
    saver = Saver(keep=lambda path: folders.prune(path, keep_last=1, keep_best=False), background=create_background())
    runs = root / "beside"
    first = _save(saver, runs, 1, data, rank, trainer_state=state, say=said.append)
    complete_early = first.exists()
    data.zero_()  # training goes on
    state["window"].append(3)
    held.free.set()
    saver.wait()
    found = read_manifest(first)
    data.copy_(torch.arange(4.0) + 4 * rank)

    # The next save waits for the one before; what it replaces stays until it is complete.
    held.free.clear()
    _save(saver, runs, 2, data + 10, rank)
    during = [path.name for path in folders.steps(runs)]
    threading.Timer(0.2, held.free.set).start()
    _save(saver, runs, 3, data + 20, rank)
    second_was_complete = (runs / "step_2").exists() or (runs / "step_3").exists()
    saver.wait()
    kept = [path.name for path in folders.steps(runs)]

    # Rank 1's disk is full: both ranks learn of it, once, and the last good checkpoint stays.
    def fail(path: Path, _: Any) -> None:
        if rank == 1:
            raise OSError(28, "No space left on device")
        write(path, _)

    write, store.write_rank_state = store.write_rank_state, fail
    _save(saver, runs, 4, data, rank)
    deadline = time.monotonic() + LIMIT
    while not saver.has_failed and time.monotonic() < deadline:
        time.sleep(0.01)
    failed, error = saver.has_failed, ""
    try:
        saver.wait()
    except CheckpointError as raised:
        error = str(raised)
    after = [path.name for path in folders.steps(runs)]
    store.write_rank_state = write
    _save(saver, runs, 5, data, rank)
    saver.wait()
    store.save = real
    return {
        "equal files": found.files == expected.files,
        "complete before it was written": complete_early,
        "said": said,
        "during": during,
        "second was complete": second_was_complete,
        "kept": kept,
        "failed": (failed, saver.has_failed, error),
        "after": after,
        "end": [path.name for path in folders.steps(runs)],
    }


def test_a_save_beside_training_equals_one_at_once_and_fails_on_all_ranks(tmp_path: Path) -> None:
    first, second = run_ranks(beside_training, 2, str(tmp_path))
    for answer in (first, second):
        assert answer["equal files"]
        assert not answer["complete before it was written"]
        assert answer["during"] == ["step_1"]
        assert answer["second was complete"]
        assert answer["kept"] == ["step_3"]
        assert answer["failed"][:2] == (True, False)
        assert "step 4 cannot be saved\n  got:      rank 1: OSError: [Errno 28] No space left" in answer["failed"][2]
        assert "the last complete checkpoint is intact" in answer["failed"][2]
        assert answer["after"] == ["step_3"]
        assert answer["end"] == ["step_5"]
    assert len(first["said"]) == 1
    assert first["said"][0].startswith(f"saved {tmp_path}/beside/step_1: ")
    assert second["said"] == []
    assert read_weights(tmp_path / "beside" / "step_5")["w"].tolist() == list(range(8))
