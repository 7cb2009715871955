import pytest

from distmoe.errors import ConfigError
from distmoe.tokenization import build_word_tokenizer, fingerprint, load_tokenizer


def test_a_missing_folder_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"no such tokenizer folder\n.*nowhere"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot load a tokenizer[\s\S]*data\.tokenizer"):
        load_tokenizer(tmp_path)


def test_the_fingerprint_sees_vocabulary_and_its_order_but_not_use():
    tokenizer = build_word_tokenizer(["sun", "moon"])
    before = fingerprint(tokenizer)
    tokenizer(["sun sun sun sun"], truncation=True, max_length=3, padding=True)
    assert fingerprint(tokenizer) == before
    tokenizer.split_special_tokens = True
    assert tokenizer("[SEP]")["input_ids"] != build_word_tokenizer(["sun", "moon"])("[SEP]")["input_ids"]
    assert fingerprint(tokenizer) != before
    assert fingerprint(build_word_tokenizer(["moon", "sun"])) != before
    assert fingerprint(build_word_tokenizer(["sun", "moon", "sea"])) != before
