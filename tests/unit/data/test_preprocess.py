import numpy as np

from distmoe.data.example import TaskExample
from distmoe.data.preprocess import encode_split
from distmoe.tokenization import build_word_tokenizer

TOKENIZER = build_word_tokenizer([f"w{i}" for i in range(20)])  # w0 is id 5


def words(*ids):
    return " ".join(f"w{i}" for i in ids)


def test_examples_lie_one_after_another_with_their_segments():
    split = encode_split(
        [TaskExample(words(0), words(1, 2), 1), TaskExample(words(3), words(4), 0)], TOKENIZER, max_length=16
    )
    assert split.input_ids_T.tolist() == [2, 5, 3, 6, 7, 3, 2, 8, 3, 9, 3]
    assert split.token_type_ids_T.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    assert split.starts_N.tolist() == [0, 6]
    assert split.lengths_N.tolist() == [6, 5]
    assert split.num_truncated == 0


def test_truncation_is_counted_and_exact_fits_are_not():
    texts = [words(*range(n)) for n in (3, 4, 5)]  # 5, 6 and 7 tokens with [CLS] and [SEP]
    split = encode_split([TaskExample(text, None, 0) for text in texts], TOKENIZER, max_length=6)
    assert split.lengths_N.tolist() == [5, 6, 6]
    assert split.num_truncated == 1
    assert split.input_ids_T[-6:].tolist() == [2, 5, 6, 7, 8, 3]


def test_of_a_pair_the_longer_text_loses_tokens_first():
    split = encode_split([TaskExample(words(0), words(1, 2, 3, 4, 5, 6), 0)], TOKENIZER, max_length=7)
    assert split.input_ids_T.tolist() == [2, 5, 3, 6, 7, 8, 3]
    assert split.num_truncated == 1


def test_segments_exist_only_if_the_tokenizer_makes_them():
    tokenizer = build_word_tokenizer(["w0"])
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert encode_split([TaskExample("w0", None, 0)], tokenizer, max_length=8).token_type_ids_T is None


def test_an_empty_text_is_only_special_tokens():
    split = encode_split([TaskExample("", None, 0)], TOKENIZER, max_length=8)
    assert split.input_ids_T.tolist() == [2, 3]


def test_chunks_do_not_show(monkeypatch):
    examples = [TaskExample(words(*range(n % 9)), None, n % 2) for n in range(25)]
    whole = encode_split(examples, TOKENIZER, max_length=8)
    monkeypatch.setattr("distmoe.data.preprocess._CHUNK", 4)
    parts = encode_split(examples, TOKENIZER, max_length=8)
    for name in ("input_ids_T", "token_type_ids_T", "starts_N", "lengths_N", "labels_N"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    assert whole.num_truncated == parts.num_truncated
