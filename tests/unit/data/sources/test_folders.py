import json

import pytest

from distmoe.data.config import DataConfig, SuiteConfig, TasksConfig
from distmoe.data.sources import load_tasks
from distmoe.errors import ConfigError

SUITE = SuiteConfig(num_task_groups=1, tasks_per_group=2, train_examples=8, low_resource_examples=4, eval_examples=4)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "anywhere" / "mood_files"
    path.mkdir(parents=True)
    (path / "task.json").write_text('{"type": "classification", "labels": ["bad", "good"], "metric": "accuracy"}')
    for split in ("train", "validation"):
        (path / f"{split}.jsonl").write_text(json.dumps({"text": split, "label": "good"}) + "\n")
    return str(path)


def load(**folders):
    return load_tasks(TasksConfig(suite=SUITE, folders=folders), DataConfig())


def test_a_folder_is_a_task_besides_those_of_the_source(folder):
    tasks, source = load(mood=folder)
    alone, suite = load()
    assert tasks.names == (*alone.names, "mood")
    assert tasks[-1].labels == ("bad", "good")
    assert source.splits("mood") == ("train", "validation")
    assert [example.text for example in source.examples("mood", "validation")] == ["validation"]
    assert source.fingerprint("mood", "train") != source.fingerprint("mood", "validation")
    assert source.examples(alone.names[0], "train") == suite.examples(alone.names[0], "train")
    assert source.vocabulary == suite.vocabulary


def test_a_name_of_the_source_and_a_missing_folder_are_refused(folder):
    name = load()[0].names[0]
    with pytest.raises(ConfigError, match="tasks that the source has already"):
        load(**{name: folder})
    for missing in (folder + "_x", folder + "_x/below"):
        with pytest.raises(ConfigError, match=r"tasks\.folders\.mood is not a folder\n.*mood_files_x"):
            load(mood=missing)
