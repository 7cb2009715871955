import pytest

from distmoe.data.indexed.tokens import tokenize_documents
from tests.unit.data.indexed.toy_sets import END, TOKENIZER, documents


@pytest.mark.parametrize("parse_special", [False, True])
def test_documents_are_what_the_tokenizer_makes_of_each_whatever_it_was_called_with_before(monkeypatch, parse_special):
    monkeypatch.setattr(TOKENIZER, "split_special_tokens", not parse_special)
    texts = [*documents(5), "", "w1 [SEP] w2 [MASK]", "unknown"]
    TOKENIZER(texts, padding="max_length", truncation=True, max_length=3, split_special_tokens=parse_special)
    tokenized = tokenize_documents([(text,) for text in texts], TOKENIZER, prompt=None)
    plain = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert tokenized == [[[*ids, END]] if ids else [] for ids in plain]
    assert (plain[6][1] == END) is parse_special
    pairs = tokenize_documents([(text, "w3") for text in texts], TOKENIZER, prompt="w0 {text}")
    prompts = [TOKENIZER(f"w0 {text}")["input_ids"] for text in texts]
    assert [pair[0] for pair in pairs if pair] == [prompt for text, prompt in zip(texts, prompts, strict=True) if text]


def test_a_tokenizer_with_a_call_of_its_own_is_called(monkeypatch):
    class Shouting(type(TOKENIZER)):
        def _encode_plus(self, text, **settings):
            return super()._encode_plus([one.lower() for one in text], **settings)

    monkeypatch.setattr(TOKENIZER, "__class__", Shouting)
    assert tokenize_documents([("W1 W2",), ("W3",)], TOKENIZER, prompt=None) == [
        [[*TOKENIZER.convert_tokens_to_ids(["w1", "w2"]), END]],
        [[*TOKENIZER.convert_tokens_to_ids(["w3"]), END]],
    ]
