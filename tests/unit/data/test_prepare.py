import numpy as np
import pytest

from distmoe.data.config import DataConfig, ShiftsConfig, TextSuiteConfig
from distmoe.data.example import TaskExample
from distmoe.data.prepare import SplitReport, encode_tasks
from distmoe.data.sources.base import TaskSource
from distmoe.data.sources.text_suite import TextSuiteSource
from distmoe.errors import ConfigError, DataError
from distmoe.tasks import TaskSet, TaskSpec
from distmoe.tokenization import build_word_tokenizer

TOKENIZER = build_word_tokenizer(["a", "b", "c"])
SPECS = {
    "class": TaskSpec(name="class", kind="classification", metric="accuracy", labels=("no", "yes")),
    "number": TaskSpec(name="number", kind="regression", metric="pearson"),
}
DATA = {
    ("class", "train"): [TaskExample("a b c a b c", None, 1), TaskExample("b", None, 0), TaskExample("c", None, 0)],
    ("class", "validation"): [TaskExample("c", None, 1)],
    ("class", "test"): [TaskExample("c c", None, 1)],
    ("number", "train"): [TaskExample("a", None, 3.75), TaskExample("b", None, 0.5)],
    ("number", "validation"): [TaskExample("a a", None, 2.2)],
}


class Table(TaskSource):
    """A source over ``DATA`` that counts its reads."""

    names = tuple(SPECS)

    def __init__(self):
        self.reads = []

    def spec(self, name):
        return SPECS[name]

    def splits(self, name):
        return tuple(split for task, split in DATA if task == name)

    def examples(self, name, split):
        self.reads.append((name, split))
        return DATA[name, split]

    def fingerprint(self, name, split):
        return f"{name} {split}"


TASKS = TaskSet(tuple(SPECS.values()))


def config(tmp_path, **changes):
    return DataConfig(cache_dir=str(tmp_path), **{"max_length": 6, **changes})


def test_every_split_is_encoded_and_reported(tmp_path, caplog):
    encoded, reports = encode_tasks(TASKS, Table(), TOKENIZER, config(tmp_path, max_train_examples=2))
    assert "left out by data.max_train_examples: class train 1" in caplog.text
    assert encoded.train_sizes == (2, 2)
    assert encoded.pad_token_id == 0
    assert reports == [
        SplitReport("class", "train", 2, 1, 1),
        SplitReport("number", "train", 2, 0, 0),
        SplitReport("class", "validation", 1, 0, 0),
        SplitReport("number", "validation", 1, 0, 0),
        SplitReport("class", "test", 1, 0, 0),
    ]


def test_float_labels_stay_floats(tmp_path):
    encoded, _ = encode_tasks(TASKS, Table(), TOKENIZER, config(tmp_path))
    assert encoded.train[1].labels_N.tolist() == [3.75, 0.5]


def test_without_test_the_validation_split_stands_in_and_is_named(tmp_path, caplog):
    with caplog.at_level("INFO", logger="distmoe"):
        encoded, _ = encode_tasks(TASKS, Table(), TOKENIZER, config(tmp_path))
    assert encoded.without_test == (1,)
    assert encoded.split("test")[1] is encoded.validation[1]
    assert encoded.split("test")[0] is encoded.test[0]
    assert "validation is reported as test: number" in caplog.text
    assert "truncated: class train 1 of 3" in caplog.text


def test_the_second_run_reads_the_cache_only(tmp_path):
    first, second = Table(), Table()
    built, reports = encode_tasks(TASKS, first, TOKENIZER, config(tmp_path))
    loaded, reports_again = encode_tasks(TASKS, second, TOKENIZER, config(tmp_path))
    assert len(first.reads) == 5
    assert second.reads == []
    assert reports == reports_again
    np.testing.assert_array_equal(built.train[0].input_ids_T, loaded.train[0].input_ids_T)


def test_other_ranks_wait_for_the_builder_and_then_read(tmp_path):
    reader = Table()

    def barrier():
        encode_tasks(TASKS, Table(), TOKENIZER, config(tmp_path))  # what the builder does meanwhile

    encode_tasks(TASKS, reader, TOKENIZER, config(tmp_path), is_builder=False, barrier=barrier)
    assert reader.reads == []


def test_a_failing_builder_still_meets_the_others(tmp_path):
    class Empty(Table):
        def examples(self, name, split):
            raise DataError("split is empty", got=0, expected=1, remedy="fill it")

    met = []
    with pytest.raises(DataError, match="split is empty"):
        encode_tasks(TASKS, Empty(), TOKENIZER, config(tmp_path), barrier=lambda: met.append(1))
    assert met == [1]


def test_a_length_without_room_for_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no room for two texts[\s\S]*got: +4[\s\S]*at least 5"):
        encode_tasks(TASKS, Table(), TOKENIZER, config(tmp_path, max_length=4))


def test_a_tokenizer_without_padding_is_refused(tmp_path):
    tokenizer = build_word_tokenizer(["a"])
    tokenizer.pad_token = None
    with pytest.raises(ConfigError, match="has no padding token"):
        encode_tasks(TASKS, Table(), tokenizer, config(tmp_path))


SHIFTS = {"drop": [0.5], "longer": [2]}


def test_test_splits_are_encoded_once_more_under_shift_and_cached(tmp_path, caplog):
    """A task without a test split is shifted in its validation, which stands in for it."""
    with_shifts = config(tmp_path, shifts=ShiftsConfig(**SHIFTS), max_length=5)
    plain, _ = encode_tasks(TASKS, Table(), TOKENIZER, config(tmp_path, max_length=5))
    reader = Table()
    encoded, reports = encode_tasks(TASKS, reader, TOKENIZER, with_shifts)
    assert reader.reads == [("class", "test"), ("number", "validation")] * 2
    assert [split.lengths_N.tolist() for split in encoded.split("test")] == [[4], [4]]
    assert [split.lengths_N.tolist() for split in encoded.split("test~longer_2")] == [[5], [5]]
    assert encoded.split("test~drop_0.5")[1].labels_N.tolist() == plain.validation[1].labels_N.tolist()
    assert SplitReport("class", "test~longer_2", 1, 1, 0) in reports
    assert "class test~longer_2 1 of 1" in caplog.text
    assert "longer_2: texts get 100 % more words, but data.max_length=5 cuts" in caplog.text
    again = Table()
    encode_tasks(TASKS, again, TOKENIZER, with_shifts)
    assert again.reads == []
    encode_tasks(TASKS, again, TOKENIZER, with_shifts, seed=1)
    assert again.reads == [("class", "test"), ("number", "validation")] * 2


def test_longer_texts_of_which_nothing_is_left_are_refused(tmp_path):
    class Full(Table):
        def examples(self, name, split):
            return [TaskExample("a b c a b c", None, 0)]

    with pytest.raises(ConfigError, match=r"all cut again[\s\S]*longer=\[1.5\], data.max_length=5"):
        encode_tasks(TASKS, Full(), TOKENIZER, config(tmp_path, max_length=5, shifts=ShiftsConfig(longer=[1.5])))


def test_tasks_without_texts_apart_from_answers_are_refused(tmp_path):
    suite = TextSuiteSource(TextSuiteConfig())
    tasks = TaskSet(tuple(suite.spec(name) for name in suite.names))
    with pytest.raises(ConfigError, match=rf"keeps answers[\s\S]*got: +{suite.names[0]}"):
        encode_tasks(
            tasks, suite, build_word_tokenizer(suite.vocabulary), config(tmp_path, shifts=ShiftsConfig(drop=[0.1]))
        )
