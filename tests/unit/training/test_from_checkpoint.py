"""A checkpoint is opened with the tasks that it was trained on, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distmoe.data.config import DataConfig, TasksConfig
from distmoe.data.sources import load_tasks
from distmoe.errors import CheckpointError, DataError
from distmoe.training.from_checkpoint import load_checkpoint
from tests.unit.checkpoint.runs import trained, write_run
from tests.unit.models.samples import model_config

NAMES = ("bones", "clouds")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in NAMES:
        task_folder(tmp_path / "data" / name)
    return tmp_path / "data"


def task_folder(folder: Path, labels: tuple[str, ...] = ("x", "y")) -> None:
    folder.mkdir(parents=True)
    values = {"type": "classification", "labels": labels, "metric": "accuracy", "description": f"{folder.name}?"}
    (folder / "task.json").write_text(json.dumps(values))
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text('{"text": "red", "label": 0}\n')


@pytest.fixture
def checkpoint(tmp_path: Path, data: Path) -> Path:
    tasks, _ = load_tasks(TasksConfig(source="local"), DataConfig(root=str(data)))
    config, one_group = model_config(), [[0, 1]]
    model = trained(config, tasks=tasks, partition=one_group)
    values = {
        "run": {"name": "trial"},
        "data": {"root": str(data), "max_length": 8, "tokenizer": str(tmp_path / "run" / "tokenizer")},
        "tasks": {"source": "local"},
        "model": config.model_dump(),
    }
    return write_run(tmp_path / "run", config, model, tasks=tasks, partition=one_group, config=values)


def test_tasks_that_came_to_the_folder_later_are_not_opened(checkpoint: Path, data: Path) -> None:
    task_folder(data / "a_first_one")
    loaded = load_checkpoint(checkpoint)
    assert loaded.sources.tasks == loaded.stored.tasks
    assert loaded.sources.tasks.names == tuple(loaded.config.tasks.names or ()) == NAMES


def test_tasks_in_another_order_are_refused_with_both_lists(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"got:      bones \| clouds\n  expected: clouds \| bones"):
        load_checkpoint(checkpoint, ["tasks.names=[clouds,bones]"])


def test_a_task_of_other_labels_is_refused(checkpoint: Path, data: Path) -> None:
    path = data / "bones" / "task.json"
    path.write_text(path.read_text().replace('["x", "y"]', '["y", "x"]'))
    with pytest.raises(CheckpointError, match="other labels"):
        load_checkpoint(checkpoint)


def test_a_renamed_task_folder_is_missed(checkpoint: Path, data: Path) -> None:
    (data / "bones").rename(data / "stones")
    with pytest.raises(DataError, match="bones"):
        load_checkpoint(checkpoint)


def test_a_damaged_checkpoint_is_not_scored(checkpoint: Path) -> None:
    path = next((checkpoint / "shards").glob("*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged\n(.|\n)*another SHA-256"):
        load_checkpoint(checkpoint)
