"""A local stand-in for the hub: `datasets.load_dataset` reads a folder of Parquet files, without a network."""

import datasets
import pytest

from distmoe.data.config import DataConfig, HubTaskConfig, TasksConfig
from distmoe.data.example import TaskExample
from distmoe.data.sources import HubSource, load_tasks
from distmoe.errors import DataError

FEATURES = datasets.Features(
    {
        "premise": datasets.Value("string"),
        "hypothesis": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["entailment", "neutral", "contradiction"]),
        "idx": datasets.Value("int32"),
    }
)


@pytest.fixture(scope="module")
def nli(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nli")
    for split, labels in {"train": [0, 2], "validation_matched": [1], "test": [-1]}.items():
        rows = {
            "premise": [f"p{i}" for i in range(len(labels))],
            "hypothesis": [f"h{i}" for i in range(len(labels))],
            "label": labels,
            "idx": list(range(len(labels))),
        }
        datasets.Dataset.from_dict(rows, features=FEATURES).to_parquet(folder / f"{split}.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: {s}.parquet\n" for s in ("train", "validation_matched", "test"))
        + "---\n"
    )
    return str(folder)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)


def task(folder, **changes):
    values = {
        "path": folder,
        "kind": "pair_classification",
        "metric": "accuracy",
        "text": "premise",
        "text_pair": "hypothesis",
        "splits": {"train": "train", "validation": "validation_matched"},
    }
    return HubTaskConfig(**{**values, **changes})


def test_columns_are_mapped_and_class_names_come_from_the_data_set(nli):
    tasks, source = load_tasks(TasksConfig(source="hub", hub={"mnli": task(nli)}), DataConfig())
    assert tasks[0].labels == ("entailment", "neutral", "contradiction")
    assert source.splits("mnli") == ("train", "validation")
    assert source.examples("mnli", "train") == [TaskExample("p0", "h0", 0), TaskExample("p1", "h1", 2)]
    assert source.examples("mnli", "validation") == [TaskExample("p0", "h0", 1)]


def test_a_test_split_without_answers_is_refused_with_the_way_out(nli):
    splits = {"train": "train", "validation": "validation_matched", "test": "test"}
    source = HubSource({"mnli": task(nli, splits=splits)})
    with pytest.raises(DataError, match=r"'test', row 0: label[\s\S]*got: +-1[\s\S]*leave the split out"):
        source.examples("mnli", "test")


def test_equal_content_has_one_fingerprint_and_splits_differ(nli):
    source = HubSource({"mnli": task(nli)})
    assert source.fingerprint("mnli", "train") == HubSource({"mnli": task(nli)}).fingerprint("mnli", "train")
    assert source.fingerprint("mnli", "train") != source.fingerprint("mnli", "validation")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "sentence"}, r"column 'sentence' is missing[\s\S]*premise, hypothesis, label"),
        ({"splits": {"train": "train"}}, r"has no validation split[\s\S]*tasks\.hub\.nli\.splits\.validation"),
        ({"text_pair": None}, r"pair task without a second text column"),
        ({"label": "idx"}, r"does not name its classes[\s\S]*tasks\.hub\.nli\.labels"),
        ({"splits": {"train": "train", "validation": "dev"}}, r"cannot load .*split 'dev'"),
        ({"path": "/nowhere/at/all"}, r"cannot load /nowhere/at/all"),
        ({"labels": ["yes", "no"]}, r"'train', row 1: label out of range"),
    ],
)
def test_a_wrong_description_is_refused(nli, changes, message):
    source = HubSource({"nli": task(nli, **changes)})
    with pytest.raises(DataError, match=message):
        _ = source.spec("nli"), source.examples("nli", "train"), source.examples("nli", "validation")


def test_an_unknown_task_lists_what_is_described(nli):
    with pytest.raises(DataError, match=r"no such task under tasks\.hub[\s\S]*expected: mnli"):
        HubSource({"mnli": task(nli)}).spec("qqp")
