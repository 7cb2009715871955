from collections import Counter

import numpy as np
import pytest

from distmoe.data.batch import NO_LOSS
from distmoe.data.indexed.sets import open_windows
from distmoe.errors import DataError
from tests.unit.data.indexed.toy_sets import END, TOKENIZER, documents, ids, write_by_megatron


def opened(sets, **changes):
    settings = {"length": 8, "seed": 0, "limit": None, "keep_last": False, "where": "task", **changes}
    return open_windows(sets, TOKENIZER, **settings)


@pytest.fixture
def path(tmp_path):
    return write_by_megatron(tmp_path / "set", [[*ids(text), END] for text in documents(60)])


def test_evaluation_predicts_every_token_but_the_first_of_each_document_once(path):
    """A document's first token has no token of its own document before it."""
    windows = opened({path: 0.0}, keep_last=True)
    labels = Counter()
    for example in range(len(windows)):
        labels.update(token for token in windows.read(example).labels_S.tolist() if token != NO_LOSS)
    texts = documents(60)
    expected = Counter(token for text in texts for token in [*ids(text)[1:], END])
    # The first token of the first document of the shuffled corpus is nobody's label; all others are accounted for.
    assert labels == expected
    assert windows.lengths_N.sum() == sum(len(ids(text)) + 1 for text in texts) - 1


def test_training_windows_are_full_and_what_is_left_out_is_counted(path):
    windows = opened({path: 0.0})
    assert set(windows.lengths_N.tolist()) == {8}
    assert windows.num_tokens_left_out == windows.num_tokens - 1 - 8 * len(windows)
    assert 0 <= windows.num_tokens_left_out < 8


def test_windows_depend_on_the_seed_only(path):
    def all_ids(seed):
        windows = opened({path: 0.0}, seed=seed)
        return [windows.read(example).input_ids_S.tolist() for example in range(len(windows))]

    assert all_ids(3) == all_ids(3)
    assert all_ids(3) != all_ids(4)


def test_a_blend_follows_its_weights(tmp_path):
    """One set has only token 7, the other only token 8: weights 3 to 1 are seen in the tokens."""
    sets = {
        write_by_megatron(tmp_path / "a", [[7] * 50] * 9): 3.0,
        write_by_megatron(tmp_path / "b", [[8] * 50] * 9): 1.0,
    }
    windows = opened(sets)
    first = [windows.read(example).input_ids_S[0] for example in range(len(windows))]
    assert len(windows) == 2 * 56  # of each set's 450 tokens, 449 can be read from: 56 windows of 8
    assert Counter(first) == {7: 84, 8: 28}


def test_sets_without_weights_are_each_seen_once(tmp_path):
    sets = dict.fromkeys(
        [write_by_megatron(tmp_path / "a", [[7] * 50]), write_by_megatron(tmp_path / "b", [[8] * 90])], 0.0
    )
    windows = opened(sets, keep_last=True)
    tokens = Counter(int(token) for example in range(len(windows)) for token in windows.read(example).input_ids_S)
    assert tokens == {7: 49, 8: 89}


def test_a_limit_keeps_the_first_windows(path):
    whole, some = opened({path: 0.0}), opened({path: 0.0}, limit=5)
    assert (len(some), some.num_dropped) == (5, len(whole) - 5)
    assert np.array_equal(some.read(4).input_ids_S, whole.read(4).input_ids_S)


def test_a_corpus_shorter_than_a_window_is_refused_with_both_numbers(tmp_path):
    path = write_by_megatron(tmp_path / "set", [[5, 6, 7]])
    with pytest.raises(DataError, match=r"shorter than a window[\s\S]*3 tokens[\s\S]*at least 9"):
        opened({path: 0.0})
