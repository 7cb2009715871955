"""SentencePiece itself is the oracle of the converted tokenizer."""

import random

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from distmoe.errors import ConfigError, DataError
from distmoe.tokenization import fingerprint, load_tokenizer
from distmoe.tokenization.train_sentencepiece import SentencePieceSettings, train_sentencepiece

_SYLLABLES = ("ka", "to", "mi", "ren", "shu", "ola", "pre", "ing", "the", "un")
ODD_TEXTS = (
    "",
    "  ",
    "   leading and trailing   ",
    "\t\r\n \n\n",
    "</s> <s> <unk> <pad> <|end|> <0x0A>",
    "a<|user|>b <|user|>",
    "-------- ........... aaaaaaaaaaa hahahahaha",
    "e\u0301 \u00e9 \ufb01\u00bd\u2460 \u00a0\u3000\u200b\ufeff",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f642 \U0010fffd",
    "\u4e2d\u6587 \u304b\u306a \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u0130\u0131\u017f\u212a",
    "\x01\x7f 1984 3.14",
)


def _corpus() -> list[str]:
    chance = random.Random(0)
    words = ["".join(chance.choices(_SYLLABLES, k=chance.randint(1, 4))) for _ in range(300)]
    return [" ".join(chance.choices(words, k=12)) + chance.choice((".", "!", " --- 12", "...")) for _ in range(400)]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def model(request, tmp_path_factory):
    settings = SentencePieceSettings(
        vocab_size=400, model_type=request.param, special_tokens=("<|end|>",), text_tokens=("<|user|>",)
    )
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.model"
    path.write_bytes(train_sentencepiece(_corpus(), settings).model)
    return path


@pytest.fixture(scope="module")
def folder(model):
    load_tokenizer(model).save_pretrained(str(model.parent / "hf"))
    return model.parent / "hf"


def test_the_hugging_face_folder_gives_the_ids_of_sentencepiece(model, folder):
    chance = random.Random(1)
    alphabet = (
        *"ab-. eth\n",
        *_SYLLABLES,
        "\u00e9",
        "\U0001f642",
        "\u200d",
        "<",
        ">",
        "/s",
        "<s>",
        "<|user|>",
        "....",
        "<0x41>",
    )
    fuzz = ["".join(chance.choices(alphabet, k=chance.randint(1, 40))) for _ in range(1500)]
    repeats = [chance.choice(("-", ".", "a", "ha", "the", " the")) * count for count in range(1, 60)]
    oracle, tokenizer = SentencePieceProcessor(model_file=str(model)), AutoTokenizer.from_pretrained(str(folder))
    for text in (*_corpus(), *ODD_TEXTS, *fuzz, *repeats):
        assert tokenizer(text)["input_ids"] == oracle.encode(text), text
    assert len(tokenizer) == oracle.vocab_size() == 400


def test_texts_are_restored_from_their_ids(folder):
    tokenizer = load_tokenizer(folder)
    for text in (*_corpus()[:50], *ODD_TEXTS):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text.replace("\u2581", " ")


def test_special_tokens_are_never_made_from_a_text(folder):
    tokenizer = load_tokenizer(folder)
    special = set(tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<pad>", "<|end|>"]))
    assert special == {0, 1, 2, 3, 4}
    assert not special & set(tokenizer("<s></s> <unk><pad><|end|>")["input_ids"])
    assert tokenizer("a<|user|>b")["input_ids"].count(tokenizer.convert_tokens_to_ids("<|user|>")) == 1


def test_model_and_folder_have_one_fingerprint(model, folder):
    assert fingerprint(load_tokenizer(model)) == fingerprint(load_tokenizer(folder))


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "words.model"
    path.write_text("no model")
    with pytest.raises(ConfigError, match=r"words\.model is no SentencePiece model[\s\S]*train_tokenizer"):
        load_tokenizer(path)


def test_a_normalising_model_is_refused_with_its_rule(tmp_path, model):
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    proto.normalizer_spec.name, proto.normalizer_spec.precompiled_charsmap = "nmt_nfkc", b"table"
    path = tmp_path / "nfkc.model"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ConfigError, match=r"cannot be used with equal ids[\s\S]*normalisation nmt_nfkc"):
        load_tokenizer(path)


def test_a_vocabulary_that_the_texts_cannot_fill_is_refused_with_the_largest_possible():
    with pytest.raises(ConfigError, match=r"cannot train[\s\S]*vocab_size=30000[\s\S]*of at most \d+"):
        train_sentencepiece(_corpus(), SentencePieceSettings(vocab_size=30000))


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(ConfigError, match=r"cannot train[\s\S]*vocab_size=100"):
        train_sentencepiece(_corpus(), SentencePieceSettings(vocab_size=100))


def test_no_text_is_refused():
    with pytest.raises(DataError, match="no text to train"):
        train_sentencepiece(["", "\u2581"], SentencePieceSettings(vocab_size=300))


def test_lines_with_reserved_characters_are_counted():
    trained = train_sentencepiece([*_corpus(), "a\u2581b\nc\x00d"], SentencePieceSettings(vocab_size=300))
    assert (trained.num_lines, trained.num_left_out) == (400, 2)
