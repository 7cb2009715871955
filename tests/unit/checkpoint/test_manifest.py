from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distmoe.checkpoint.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    TensorRecord,
    damage,
    read_manifest,
    record_file,
)
from distmoe.errors import CheckpointError
from distmoe.tasks import TaskSet, TaskSpec


def manifest(**changes: object) -> Manifest:
    tasks = TaskSet((TaskSpec(name="a", kind="regression", metric="pearson"),)).to_json()
    values: dict = {"step": 3, "tasks": tasks, "grouping": {"num_tasks": 1, "layers": []}, "score": 0.5}
    return Manifest(**(values | changes))


def change(folder: Path, **values: object) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    written = manifest(
        tensors={"w": TensorRecord("trainable", (2, 3), "float32")}, files={"shards/x": FileRecord(4, "ab")}
    )
    written.write(tmp_path)
    assert read_manifest(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_NAME]


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a complete checkpoint(.|\n)*runs/NAME/checkpoints/step_N"):
        read_manifest(tmp_path)


def test_a_newer_format_is_refused_with_both_numbers(tmp_path: Path) -> None:
    manifest().write(tmp_path)
    change(tmp_path, format_version=FORMAT_VERSION + 1)
    with pytest.raises(CheckpointError, match=rf"format {FORMAT_VERSION + 1}(.|\n)*format {FORMAT_VERSION} or older"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format_version": 1, "step": 1}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"step": "3"},
        {"tasks": [{"name": "a"}]},
        {"tasks": {}},
        {"tasks": []},
        {"grouping": {"num_tasks": 1, "layers": [[[0, 5]]]}},
        {"grouping": {"num_tasks": 1, "layers": 3}},
        {"grouping": {"num_tasks": 2, "layers": []}},
        {"config": []},
        {"score": "high"},
        {"optimizer": None},
        {"tensors": {"w": {"kind": "melted", "shape": [2], "dtype": "float32"}}},
        {"tensors": {"w": {"kind": "frozen", "shape": [2.5], "dtype": "float32"}}},
        {"tensors": {"w": {"kind": "frozen", "shape": [2], "dtype": "Tensor"}}},
    ],
    ids=str,
)
def test_values_of_another_kind_are_damage(tmp_path: Path, values: dict[str, Any]) -> None:
    manifest().write(tmp_path)
    change(tmp_path, **values)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "shards/../../outside"])
def test_files_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    manifest(files={name: FileRecord(1, "")}).write(tmp_path)
    with pytest.raises(CheckpointError, match="names a file outside the checkpoint"):
        read_manifest(tmp_path)


def test_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "shard").symlink_to("/etc/hostname")
    manifest(files={"shard": FileRecord(1, "")}).write(tmp_path)
    with pytest.raises(CheckpointError, match="names a file outside the checkpoint"):
        read_manifest(tmp_path)


def test_damage_names_a_missing_a_short_and_a_changed_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abcd")
    record = record_file(path)
    assert record.size == 4
    assert damage(tmp_path, "x", record, checksum=True) is None
    path.write_bytes(b"abce")
    assert damage(tmp_path, "x", record, checksum=False) is None
    assert damage(tmp_path, "x", record, checksum=True) == "x has another SHA-256 than the manifest says"
    path.write_bytes(b"abc")
    assert damage(tmp_path, "x", record, checksum=False) == "x has 3 bytes instead of 4"
    path.unlink()
    assert damage(tmp_path, "x", record, checksum=False) == "x is missing"


def test_a_linked_folder_is_refused(tmp_path: Path) -> None:
    folder, outside = tmp_path / "step_3", tmp_path / "outside"
    for path in (folder, outside):
        path.mkdir()
    (outside / "x").write_text("secret")
    (folder / "shards").symlink_to(outside)
    manifest(files={"shards/x": record_file(outside / "x")}).write(folder)
    with pytest.raises(CheckpointError, match=r"outside the checkpoint(.|\n)*shards/x"):
        read_manifest(folder)
    (tmp_path / "linked").symlink_to(folder)  # the checkpoint itself may be reached through a link
    (folder / "shards").unlink()
    (folder / "shards").mkdir()
    assert read_manifest(tmp_path / "linked").step == 3
