import json
from pathlib import Path
from typing import Any

import pytest

from distmoe.errors import CheckpointError, ConfigError
from distmoe.models.config import ModelConfig
from distmoe.models.shape import EncoderShape, resolve_shape, shape_of_folder

BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 100,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-6,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}


def _folder(path: Path, **changes: Any) -> Path:
    values = {key: value for key, value in (BERT | changes).items() if value is not ...}
    (path / "config.json").write_text(json.dumps(values))
    return path


def test_bert_folder_decides_the_shape_and_the_configuration_is_not_read(tmp_path: Path) -> None:
    config = ModelConfig(pretrained=str(_folder(tmp_path)), hidden_size=999, layer_norm_eps=0.5)
    assert resolve_shape(config, 90, 7) == EncoderShape(
        vocab_size=100,
        pad_token_id=7,
        hidden_size=24,
        num_layers=3,
        num_heads=4,
        intermediate_size=48,
        max_positions=64,
        position_offset=0,
        num_token_types=2,
        activation="relu",
        layer_norm_eps=1e-6,
    )


@pytest.mark.parametrize("kind", ["roberta", "camembert", "xlm-roberta"])
def test_roberta_families_lose_the_offset_rows_of_their_position_table(tmp_path: Path, kind: str) -> None:
    _folder(tmp_path, model_type=kind, max_position_embeddings=514, pad_token_id=1, type_vocab_size=1)
    shape = shape_of_folder(tmp_path)
    assert (shape.position_offset, shape.max_positions, shape.num_token_types) == (2, 512, 1)


@pytest.mark.parametrize(("kind", "pad", "offset"), [("bert", 0, 0), ("roberta", 1, 2)])
def test_a_null_padding_id_is_the_family_s(tmp_path: Path, kind: str, pad: int, offset: int) -> None:
    shape = shape_of_folder(_folder(tmp_path, model_type=kind, pad_token_id=None))
    assert (shape.pad_token_id, shape.position_offset) == (pad, offset)


def test_a_size_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not give the shape"):
        shape_of_folder(_folder(tmp_path, hidden_size="8"))


def test_without_a_folder_the_configuration_decides() -> None:
    shape = resolve_shape(ModelConfig(hidden_size=32, num_heads=4, norm="pre"), 55, 3)
    assert (shape.vocab_size, shape.pad_token_id, shape.hidden_size, shape.norm) == (55, 3, 32, "pre")


def test_shape_survives_json() -> None:
    shape = resolve_shape(ModelConfig(), 55, 3)
    assert EncoderShape.from_json(json.loads(json.dumps(shape.to_json()))) == shape


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)hidden_size 128, num_heads 5.*model.num_heads"):
        resolve_shape(ModelConfig(num_heads=5), 10, 0)


def test_missing_folder_and_missing_config_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)no pretrained folder.*nowhere.*model.pretrained"):
        resolve_shape(ModelConfig(pretrained=str(tmp_path / "nowhere")), 10, 0)
    with pytest.raises(CheckpointError, match=r"(?s)has no config.json"):
        resolve_shape(ModelConfig(pretrained=str(tmp_path)), 10, 0)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_unreadable_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"(?s)config.json cannot be read.*JSON object"):
        shape_of_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "deberta-v2"}, r'(?s)cannot start.*"deberta-v2".*bert \| roberta'),
        ({"model_type": ...}, r'(?s)model_type "None"'),
        ({"position_embedding_type": "relative_key"}, r"(?s)position_embedding_type='relative_key'.*absolute"),
        ({"is_decoder": True}, r"(?s)is_decoder=True.*False"),
        ({"hidden_act": "mish"}, r"(?s)hidden_act='mish'.*gelu"),
        ({"num_attention_heads": 5}, r"(?s)hidden_size 24, num_heads 5"),
    ],
)
def test_encoders_with_another_arithmetic_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shape_of_folder(_folder(tmp_path, **changes))


def test_config_without_sizes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)no key 'intermediate_size'"):
        shape_of_folder(_folder(tmp_path, intermediate_size=...))


def test_pre_norm_with_a_pretrained_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)post-LN.*model.norm=pre"):
        resolve_shape(ModelConfig(pretrained=str(_folder(tmp_path)), norm="pre"), 10, 0)


def test_tokenizer_larger_than_the_token_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)101 token ids.*at most 100"):
        resolve_shape(ModelConfig(pretrained=str(_folder(tmp_path))), 101, 0)
