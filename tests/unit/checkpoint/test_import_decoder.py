"""Llama, Mistral, Qwen2 and Qwen3 folders compute in distmoe what they compute in transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from distmoe.checkpoint import decoder_keys
from distmoe.checkpoint.hf_folder import read_tensors
from distmoe.checkpoint.import_hf import load_pretrained
from distmoe.checkpoint.normalise_hf import normalise
from distmoe.errors import CheckpointError, ConfigError
from distmoe.models.config import ModelConfig
from distmoe.models.decoder_config import DecoderConfig
from distmoe.models.decoder_shape import DecoderShape
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.models.shape import resolve_shape, shape_of_folder
from distmoe.moe.layer import RoutedFeedForward
from tests.unit.checkpoint.decoder_folders import FOLDERS, YARN, save_decoder
from tests.unit.models.decoder_samples import decoder_config, logits_of, make_decoder, token_batch
from tests.unit.models.samples import moe_config

BATCH = token_batch((7, 3, 5, 1))
TOLERANCE = 1e-5  # fp32, logits of order 1


def loaded(folder: Path, **changes: object) -> MultiTaskDecoder:
    shape = shape_of_folder(folder)
    assert isinstance(shape, DecoderShape)
    head = "tied" if shape.tied else "shared"
    config = decoder_config(pretrained=str(folder), **({"decoder": DecoderConfig(head=head)} | changes))  # type: ignore[arg-type]
    model = make_decoder(config, shape=shape, partition=[[0, 1], [2]])
    load_pretrained(model, folder, config=config, seed=0)
    return model


def expected(stock: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits = stock(input_ids=BATCH.input_ids_BS, attention_mask=BATCH.attention_mask_BS.long()).logits
    return logits * BATCH.attention_mask_BS.unsqueeze(-1)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_computes_what_its_stock_class_computes_dense_and_upcycled(name: str, tmp_path: Path) -> None:
    stock = save_decoder(tmp_path, name, max_shard_size="20KB" if name == "llama" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (name == "llama")
    wanted = expected(stock)
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(logits_of(loaded(tmp_path), BATCH), wanted, atol=TOLERANCE, rtol=0)
    sparse = loaded(tmp_path, moe=moe_config("token", layers="all"))
    assert all(isinstance(layer.feed_forward, RoutedFeedForward) for layer in sparse.decoder.layers)
    torch.testing.assert_close(logits_of(sparse, BATCH), wanted, atol=TOLERANCE, rtol=0)
    halves = loaded(tmp_path, moe=moe_config("fixed", layers=[1], num_experts=4, top_k=2, shared_expert=True))
    torch.testing.assert_close(logits_of(halves, BATCH), wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_table_is_a_round_trip(name: str, tmp_path: Path) -> None:
    save_decoder(tmp_path, name)
    shape = shape_of_folder(tmp_path)
    assert isinstance(shape, DecoderShape)
    theirs = read_tensors(tmp_path)
    back = decoder_keys.to_hf(decoder_keys.from_hf(theirs, shape).tensors, shape)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)
    assert DecoderShape.from_json(json.loads(json.dumps(shape.to_json()))) == shape


def test_every_task_starts_from_the_folders_head_where_each_has_one(tmp_path: Path) -> None:
    stock = save_decoder(tmp_path, "llama")
    model = loaded(tmp_path, decoder=DecoderConfig(head="per_task"))
    torch.testing.assert_close(logits_of(model, BATCH), expected(stock), atol=TOLERANCE, rtol=0)


def test_a_normalised_folder_is_the_same_model_in_one_file(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    stock = save_decoder(source, "qwen3", max_shard_size="20KB")
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        normalise(source, out)
    (source / "tokenizer.model").write_bytes(b"a sentencepiece model")
    report = normalise(source, out)
    assert (report.fresh, report.ignored) == ((), ())
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors", "tokenizer.model"]
    again = AutoModelForCausalLM.from_pretrained(out)
    assert type(again) is type(stock)
    theirs, ours = stock.state_dict(), again.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_decoder(tmp_path, "llama", max_shard_size="20KB")
    with pytest.raises(ConfigError, match=r"head of .* is not its token table[\s\S]*model.decoder.head=shared"):
        loaded(tmp_path, decoder=DecoderConfig())
    with pytest.raises(ConfigError, match=r"is not its token table"):
        resolve_shape(decoder_config(pretrained=str(tmp_path)), 50, 0)
    with pytest.raises(ConfigError, match=r"another family[\s\S]*model.family=encoder[\s\S]*model.family=decoder"):
        resolve_shape(ModelConfig(pretrained=str(tmp_path)), 50, 0)
    shape = shape_of_folder(tmp_path)
    other = make_decoder(decoder_config(hidden_size=24, decoder=DecoderConfig(num_kv_heads=2, head="shared")))
    with pytest.raises(CheckpointError, match=r"not of the shape of the model[\s\S]*hidden_size 16[\s\S]*size 24"):
        load_pretrained(other, tmp_path, config=decoder_config(), seed=0)

    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    key = next(iter(tensors))
    save_file({name: value for name, value in tensors.items() if name != key}, shard)
    with pytest.raises(CheckpointError, match=rf"2-layer llama decoder[\s\S]*missing: {key}; unexpected: none"):
        loaded(tmp_path)
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"lacks shards[\s\S]*missing {shard.name}"):
        loaded(tmp_path)
    assert isinstance(shape, DecoderShape)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_act": "gelu"}, r"hidden_act='gelu'[\s\S]*silu"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
            r"rope_type 'longrope'[\s\S]*llama3 \| yarn",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}}, "with mscale"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "how far its positions are stretched[\\s\\S]*without factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": None}}, "'linear' with factor None"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "'linear' with factor '2'"),
        ({"num_key_value_heads": 3}, r"num_heads 4, num_kv_heads 3[\s\S]*multiple"),
        ({"model_type": "gemma"}, r'model_type "gemma"[\s\S]*llama \| mistral \| qwen2 \| qwen3'),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "sliding window of 8 in 1 layers, none in 1",
        ),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 1},
            "sliding window of 4096 in 1 layers, none in 1",
        ),
    ],
)
def test_a_variant_that_would_compute_something_else_is_refused(values: dict, message: str, tmp_path: Path) -> None:
    save_decoder(tmp_path, "llama")
    change(tmp_path, **values)
    with pytest.raises(ConfigError, match=message):
        shape_of_folder(tmp_path)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_a_window_that_the_folder_switches_on_without_a_size_has_that_of_transformers(
    kind: str, tmp_path: Path
) -> None:
    save_decoder(tmp_path, kind)
    values = json.loads((tmp_path / "config.json").read_text())
    for key in ("sliding_window", "layer_types"):
        del values[key]
    values |= {"use_sliding_window": True, "max_window_layers": 0}
    (tmp_path / "config.json").write_text(json.dumps(values))
    shape = shape_of_folder(tmp_path)
    assert isinstance(shape, DecoderShape)
    assert shape.sliding_window == AutoConfig.from_pretrained(tmp_path).sliding_window == 4096


def test_yarn_without_a_number_is_stretched_by_the_ratio_of_the_contexts(tmp_path: Path) -> None:
    save_decoder(tmp_path, "qwen2")
    change(tmp_path, rope_scaling=YARN | {"factor": None})  # the folder's own rope_parameters say: not stretched
    shape = shape_of_folder(tmp_path)
    assert isinstance(shape, DecoderShape)
    assert (shape.max_positions, shape.rotary.original_max_positions, shape.rotary.factor) == (64, 16, 4.0)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits_of(loaded(tmp_path), BATCH), expected(stock), atol=TOLERANCE, rtol=0)
