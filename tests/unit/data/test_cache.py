from dataclasses import fields

import numpy as np
import pytest

from distmoe.data.cache import SplitCache, cache_key
from distmoe.data.encoded import EncodedSplit
from distmoe.errors import DataError
from distmoe.tasks import TaskSet, TaskSpec

A = TaskSpec(name="a", kind="classification", metric="accuracy", labels=("no", "yes"))
B = TaskSpec(name="b", kind="regression", metric="pearson")
KEY = "0" * 32


def split(types=True):
    return EncodedSplit(
        input_ids_T=np.array([2, 7, 3, 2, 3], dtype=np.int32),
        token_type_ids_T=np.zeros(5, dtype=np.int8) if types else None,
        starts_N=np.array([0, 3], dtype=np.int64),
        lengths_N=np.array([3, 2], dtype=np.int32),
        labels_N=np.array([3.75, -0.1], dtype=np.float32),
        num_truncated=4,
        num_dropped=5,
    )


def assert_equal(got, expected):
    for field in fields(EncodedSplit):
        a, b = getattr(got, field.name), getattr(expected, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


@pytest.mark.parametrize("types", [True, False])
def test_a_split_comes_back_as_it_was(tmp_path, types):
    cache = SplitCache(tmp_path)
    assert cache.load(KEY) is None
    cache.save(KEY, split(types))
    assert_equal(cache.load(KEY), split(types))


def test_nothing_but_the_file_is_left_behind(tmp_path):
    cache = SplitCache(tmp_path)
    cache.save(KEY, split())
    cache.save(KEY, split())
    assert [path.name for path in tmp_path.iterdir()] == [f"{KEY}.safetensors"]


def _cut(data):
    return data[: len(data) // 2]


def _flip(data):
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


@pytest.mark.parametrize("damage", [_cut, _flip, lambda data: b"", lambda data: b"\x80\x04 a pickle, perhaps"])
def test_a_damaged_file_counts_as_missing(tmp_path, damage, caplog):
    cache = SplitCache(tmp_path)
    cache.save(KEY, split())
    path = cache.path(KEY)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level("WARNING", logger="distmoe"):
        assert cache.load(KEY) is None
    assert "is damaged" in caplog.text


def test_a_file_under_another_key_counts_as_missing(tmp_path):
    cache = SplitCache(tmp_path)
    cache.save(KEY, split())
    other = "1" * 32
    cache.path(KEY).rename(cache.path(other))
    assert cache.load(other) is None


def test_the_key_covers_everything_that_shapes_a_split():
    base = {"content": "c", "tokenizer": "t", "max_length": 16, "max_examples": None}
    longer = TaskSpec(name="a", kind="classification", metric="accuracy", labels=("yes", "no"))
    keys = [
        cache_key(TaskSet((A, B)), 0, "train", **base),
        cache_key(TaskSet((A, B)), 0, "validation", **base),
        cache_key(TaskSet((B, A)), 1, "train", **base),
        cache_key(TaskSet((A,)), 0, "train", **base),
        cache_key(TaskSet((longer, B)), 0, "train", **base),
        *(
            cache_key(TaskSet((A, B)), 0, "train", **{**base, **change})
            for change in ({"content": "d"}, {"tokenizer": "u"}, {"max_length": 17}, {"max_examples": 50})
        ),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == cache_key(TaskSet((A, B)), 0, "train", **base)


def test_the_key_covers_the_format(monkeypatch):
    base = {"content": "c", "tokenizer": "t", "max_length": 16, "max_examples": None}
    before = cache_key(TaskSet((A,)), 0, "train", **base)
    monkeypatch.setattr("distmoe.data.cache.FORMAT_VERSION", 99)
    assert cache_key(TaskSet((A,)), 0, "train", **base) != before


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot make the cache folder[\s\S]*data\.cache_dir"):
        SplitCache(tmp_path / "file" / "cache")
