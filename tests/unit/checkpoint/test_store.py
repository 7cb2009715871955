from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distmoe.checkpoint import folders, store
from distmoe.checkpoint.consolidate import read_weights
from distmoe.checkpoint.fragments import Fragment
from distmoe.checkpoint.global_view import GlobalView, replicated
from distmoe.checkpoint.manifest import MANIFEST_NAME, Manifest, TensorRecord
from distmoe.checkpoint.storage import INDEX_NAME
from distmoe.errors import CheckpointError
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec

TASKS = TaskSet((TaskSpec(name="a", kind="classification", metric="accuracy", labels=("x", "y")),))
GROUPING = TaskGrouping.one_group(1, 1)
WHOLE = {"w": torch.arange(24.0).view(6, 4), "frozen": torch.arange(3.0), "count": torch.tensor([7])}
KINDS = {"w": "trainable", "frozen": "frozen", "count": "buffer"}


def fragments(values: dict[str, Tensor]) -> list[Fragment]:
    found = []
    for name, value in values.items():
        view = replicated(name, tuple(value.shape))
        for key in ("fp32", "exp_avg", "exp_avg_sq") if KINDS[name] == "trainable" else (KINDS[name],):
            found.append(Fragment(f"{key}/{name}", view, 0, value.view(-1)))
    return found


def save(root: Path, step: int = 1, **changes: Any) -> Path:
    records = {
        name: TensorRecord(KINDS[name], tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in WHOLE.items()
    }
    values: dict[str, Any] = {
        "step": step,
        "tasks": TASKS.to_json(),
        "grouping": GROUPING.to_json(),
        "tensors": records,
    } | changes
    return store.save(
        root,
        manifest=Manifest(**values),
        fragments=fragments(WHOLE),
        trainer_state={"epoch": 2},
        rank_state={"random": torch.arange(3), "position": [1, 2]},
    )


def check(folder: Path, **changes: Any) -> Manifest:
    return store.check(folder, **({"tasks": TASKS, "grouping": GROUPING} | changes))


def test_loading_fills_the_fragments_and_returns_the_states(tmp_path: Path) -> None:
    folder = save(tmp_path)
    empty = {name: torch.full_like(value, -1) for name, value in WHOLE.items()}
    loaded = store.load(folder, manifest=check(folder), fragments=fragments(empty))
    assert all(torch.equal(empty[name], WHOLE[name]) for name in WHOLE)
    assert loaded.trainer_state == {"epoch": 2}
    assert loaded.rank_state is not None
    assert loaded.rank_state["position"] == [1, 2]
    assert loaded.rank_state["random"].tolist() == [0, 1, 2]


def test_any_other_cut_of_the_same_tensors_reads_the_same_numbers(tmp_path: Path) -> None:
    folder = save(tmp_path)
    middle, tail = torch.zeros(9), torch.zeros(2, 3)
    # Rows 1..4 of w, flat range [2, 11) of them, which starts and ends inside rows; and nothing at all of "frozen".
    rows = GlobalView("w", (4, 4), (6, 4), (1, 0))
    wanted = [
        Fragment("exp_avg/w", rows, 2, middle),
        Fragment("frozen/frozen", replicated("frozen", (3,)), 0, torch.empty(0)),
    ]
    store.read_fragments(folder, wanted, no_dist=True)
    assert middle.tolist() == list(range(6, 15))
    assert tail.sum() == 0


def test_whole_weights_are_read_without_ranks(tmp_path: Path) -> None:
    found = read_weights(save(tmp_path))
    assert found.keys() == WHOLE.keys()
    assert all(torch.equal(found[name], WHOLE[name]) and found[name].dtype == WHOLE[name].dtype for name in WHOLE)
    assert list(read_weights(tmp_path / "step_1", wanted=lambda name: name == "w")) == ["w"]


def test_every_file_but_the_manifest_is_listed_with_its_checksum(tmp_path: Path) -> None:
    folder = save(tmp_path)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == set(check(folder).files) | {MANIFEST_NAME}
    assert not list(folder.rglob(".metadata"))  # the pickle that DCP would write


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [_truncate, _flip, Path.unlink], ids=["truncated", "one bit", "missing"])
@pytest.mark.parametrize(
    "name", ["shards/__0_0.distcp", "shards/index.json", "trainer.json", "ranks/00000.safetensors"]
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, harm: Callable[[Path], None], name: str) -> None:
    folder = save(tmp_path)
    harm(folder / name)
    with pytest.raises(CheckpointError, match=rf"is damaged(.|\n)*{name}(.|\n)*another checkpoint of the run"):
        check(folder)


def test_the_manifest_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    WHOLE["w"].add_(1)
    try:
        second = save(tmp_path, 2)
    finally:
        WHOLE["w"].sub_(1)
    (first / MANIFEST_NAME).write_bytes((second / MANIFEST_NAME).read_bytes())
    with pytest.raises(CheckpointError, match=r"is damaged(.|\n)*__0_0.distcp has another SHA-256"):
        check(first)


def test_another_task_set_is_refused_with_both_lists(tmp_path: Path) -> None:
    other = TaskSet((*TASKS.specs, TaskSpec(name="b", kind="regression", metric="pearson")))
    with pytest.raises(CheckpointError, match=r"another task set\n  got:      a\n  expected: a \| b"):
        check(save(tmp_path), tasks=other)
    relabelled = TaskSet((TaskSpec(name="a", kind="classification", metric="accuracy", labels=("x", "z")),))
    with pytest.raises(CheckpointError, match="a, with other labels"):
        check(tmp_path / "step_1", tasks=relabelled)


def test_another_grouping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="another task grouping"):
        check(save(tmp_path), grouping=TaskGrouping.one_group(1, 2))


def test_a_model_of_another_shape_is_refused_before_anything_is_filled(tmp_path: Path) -> None:
    folder = save(tmp_path)
    wider = {"frozen": torch.full((3,), -1.0), "w": torch.full((6, 5), -1.0)}
    with pytest.raises(CheckpointError, match=r"'w'\n  got:      \(6, 4\)\n  expected: \[6, 5\]"):
        store.load(folder, manifest=check(folder), fragments=fragments(wider))
    assert wider["frozen"].tolist() == [-1, -1, -1]


def test_a_model_that_lacks_stored_tensors_is_refused_by_their_names(tmp_path: Path) -> None:
    folder = save(tmp_path)
    smaller = {"frozen": torch.full((3,), -1.0), "count": torch.zeros(1, dtype=torch.int64)}
    with pytest.raises(CheckpointError, match=r"1 of its 3 tensors(.|\n)*got:      a model without w\n"):
        store.load(folder, manifest=check(folder), fragments=fragments(smaller))
    assert smaller["frozen"].tolist() == [-1, -1, -1]


def test_what_another_rank_reads_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path)
    manifest, own = check(folder), {"frozen": torch.full((3,), -1.0)}
    real = store.together
    monkeypatch.setattr(store, "together", lambda work, *rest, **more: [*real(work, *rest, **more), {"w", "count"}])
    store.load(folder, manifest=manifest, fragments=fragments(own))
    assert own["frozen"].tolist() == [0, 1, 2]


def test_other_frozen_parts_than_the_checkpoints_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path)
    wanted = [Fragment("frozen/w", replicated("w", (6, 4)), 0, torch.zeros(24))]
    with pytest.raises(CheckpointError, match=r"other frozen parts: 'w'\n  got:      trainable(.|\n)*expected: frozen"):
        store.load(folder, manifest=check(folder), fragments=wanted)


def test_an_index_that_points_outside_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path)
    path = folder / "shards" / INDEX_NAME
    path.write_text(path.read_text().replace("__0_0.distcp", "../../secret"))
    with pytest.raises(CheckpointError, match="points outside the checkpoint"):
        read_weights(folder)


def test_an_index_without_a_piece_of_a_tensor_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path)
    path = folder / "shards" / INDEX_NAME
    index = json.loads(path.read_text())
    index["entries"]["fp32/w"]["chunks"].pop()
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"fp32/w is not complete\n  got:      chunks of \d+ elements"):
        read_weights(folder)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_in_place_of_a_tensor_does_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    folder = save(tmp_path)
    path, index = folder / "shards" / "__0_0.distcp", folder / "shards" / INDEX_NAME
    evil = pickle.dumps(Payload())
    path.write_bytes(evil)
    entries = json.loads(index.read_text())
    for entry in entries["entries"].values():
        for chunk in entry["chunks"]:
            chunk["start"], chunk["bytes"] = 0, len(evil)
    index.write_text(json.dumps(entries))
    with pytest.raises(
        CheckpointError,
        match=r"shards of .* cannot be read\n  got:      rank 0: UnpicklingError: something else than a tensor",
    ):
        read_weights(folder)
    assert not (tmp_path / "ran").exists()


def test_unfinished_saves_are_ignored_and_removed_by_the_next_save(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step_2.tmp" / "shards").mkdir(parents=True)
    (tmp_path / "step_3").mkdir()  # a prune that was killed: the manifest went first
    (tmp_path / "notes").mkdir()
    assert store.latest(tmp_path) == tmp_path / "step_1"
    save(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "step_1", "step_4"]
    assert store.latest(tmp_path) == tmp_path / "step_4"


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1, score=0.1)
    assert check(save(tmp_path, 1, score=0.2)).score == 0.2
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]


def test_a_save_killed_between_its_two_renames_leaves_the_older_checkpoint_of_the_step(tmp_path: Path) -> None:
    save(tmp_path, 1, score=0.1).rename(tmp_path / "step_1.old")
    (tmp_path / "step_1.tmp").mkdir()
    assert store.latest(tmp_path) == tmp_path / "step_1.old"
    assert check(tmp_path / "step_1.old").score == 0.1
    assert check(save(tmp_path, 1, score=0.2)).score == 0.2
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]


def test_a_failed_save_raises_four_parts_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"step 2 cannot be saved(.|\n)*rank 0(.|\n)*--resume auto"):
        store.save(
            tmp_path,
            manifest=Manifest(step=2, tasks=TASKS.to_json(), grouping=GROUPING.to_json()),
            fragments=fragments(WHOLE),
            trainer_state={"not JSON": {1, 2}},
            rank_state={},
        )
    assert store.latest(tmp_path) == tmp_path / "step_1"
    check(tmp_path / "step_1")


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, score in [(1, 0.3), (2, 0.9), (3, None), (10, 0.9), (11, 0.5)]:
        save(tmp_path, step, score=score)
    assert store.best(tmp_path) == tmp_path / "step_2"  # the earlier of two equal ones
    removed = store.prune(tmp_path, keep_last=2, keep_best=True)
    assert [path.name for path in removed] == ["step_1", "step_3"]
    assert [path.name for path in store.steps(tmp_path)] == ["step_2", "step_10", "step_11"]
    assert [path.name for path in store.prune(tmp_path, keep_last=1, keep_best=False)] == ["step_2", "step_10"]


def test_a_damaged_manifest_neither_counts_as_best_nor_keeps_the_next_save_from_ending(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step, score in [(1, 0.9), (2, 0.3), (3, None)]:
        save(tmp_path, step, score=score)
    (tmp_path / "step_1" / MANIFEST_NAME).write_text("{")
    assert store.best(tmp_path) == tmp_path / "step_2"
    assert [path.name for path in store.prune(tmp_path, keep_last=1, keep_best=True)] == ["step_1"]
    assert "step_1 is no candidate for the best checkpoint" in caplog.text


def test_later_checkpoints_move_together_and_stay_loadable(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path / "run", step)
    (tmp_path / "run" / "step_3").rename(tmp_path / "run" / "step_3.old")
    moved = folders.move_later(tmp_path / "run", tmp_path / "aside", after=1)
    assert [path.name for path in moved] == ["step_3.old", "step_2"]
    assert store.latest(tmp_path / "run") == tmp_path / "run" / "step_1"
    assert all(check(path).step == step for step, path in folders.by_step(tmp_path / "aside").items())


def test_a_second_folder_follows_the_checkpoints_that_are_kept(tmp_path: Path) -> None:
    root, copies = tmp_path / "checkpoints", tmp_path / "deepspeed"
    save(root, 3)
    save(root, 2).rename(root / "step_2.old")  # a save of this step was killed between its renames
    for name in ("step_1", "step_2", "step_3", "notes"):
        (copies / name).mkdir(parents=True)
    (copies / "latest").write_text("step_3")
    folders.follow(copies, root)
    assert sorted(path.name for path in copies.iterdir()) == ["latest", "notes", "step_2", "step_3"]
    folders.follow(tmp_path / "none", root)


def test_a_run_without_checkpoints_has_no_latest_and_no_best(tmp_path: Path) -> None:
    assert store.latest(tmp_path / "none") is None
    assert store.best(tmp_path) is None


def test_rank_states_keep_numbers_and_tensors_exactly(tmp_path: Path) -> None:
    state = {
        "torch": torch.get_rng_state(),
        "python": list(random.getstate()[1]),
        "text": "ä",
        "empty": torch.empty(0, 3),
        "flag": True,
    }
    folder = store.save(
        tmp_path,
        manifest=Manifest(step=1, tasks=TASKS.to_json(), grouping=GROUPING.to_json()),
        fragments=[Fragment("fp32/w", replicated("w", (6, 4)), 0, WHOLE["w"].view(-1))],
        trainer_state={},
        rank_state=state,
    )
    loaded = store.load(folder, manifest=check(folder), fragments=[]).rank_state
    assert loaded is not None
    assert loaded.keys() == state.keys()
    assert torch.equal(loaded["torch"], state["torch"])
    assert loaded["empty"].shape == (0, 3)
    assert (loaded["python"], loaded["text"], loaded["flag"]) == (state["python"], "ä", True)
