import pytest

from distmoe.data.config import DataConfig, SuiteConfig
from distmoe.data.sources import LocalSource, SuiteSource
from distmoe.data.tokenizer import resolve_tokenizer
from distmoe.errors import ConfigError
from distmoe.tokenization import build_word_tokenizer


def test_the_suite_brings_its_own_words():
    source = SuiteSource(SuiteConfig(train_examples=5))
    tokenizer = resolve_tokenizer(DataConfig(), pretrained=None, source=source)
    example = source.examples("planted0_a", "train")[0]
    assert tokenizer.unk_token_id not in tokenizer(example.text)["input_ids"]


def test_the_configured_tokenizer_wins_over_the_pretrained_models(tmp_path):
    build_word_tokenizer(["one"]).save_pretrained(tmp_path / "a")
    build_word_tokenizer(["one", "two"]).save_pretrained(tmp_path / "b")
    source = LocalSource(str(tmp_path))
    pretrained = str(tmp_path / "a")
    assert len(resolve_tokenizer(DataConfig(), pretrained=pretrained, source=source)) == 6
    assert len(resolve_tokenizer(DataConfig(tokenizer=str(tmp_path / "b")), pretrained=pretrained, source=source)) == 7


def test_real_texts_without_a_tokenizer_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"real texts need a tokenizer[\s\S]*set data\.tokenizer or model\.pretrained"
    ):
        resolve_tokenizer(DataConfig(), pretrained=None, source=LocalSource(str(tmp_path)))
