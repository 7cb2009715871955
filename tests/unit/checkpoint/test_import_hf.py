import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM

from distmoe.checkpoint.import_hf import load_pretrained
from distmoe.data.batch import TaskBatch
from distmoe.errors import CheckpointError, ConfigError
from distmoe.models.config import ModelConfig
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.shape import resolve_shape
from distmoe.moe.config import MoEConfig
from tests.unit.checkpoint.samples import hf_model, minilm_folder, save_hf, states
from tests.unit.models.samples import make_batch, make_model, model_config, moe_config


def _imported(folder: Path, moe: MoEConfig | None = None, seed: int = 0) -> tuple[MultiTaskEncoder, Any]:
    config = model_config(moe, pretrained=str(folder))
    model = make_model(config, shape=resolve_shape(config, 10, 0))
    return model, load_pretrained(model, folder, config=config, seed=seed)


def _hf_inputs(batch: TaskBatch, with_types: bool = True) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": batch.input_ids_BS, "attention_mask": batch.attention_mask_BS.long()}
    return inputs | ({"token_type_ids": batch.token_type_ids_BS} if with_types else {})


@torch.no_grad()
def _largest_difference(model: MultiTaskEncoder, reference: Any, batch: TaskBatch, with_types: bool = True) -> float:
    """Over hidden states of real tokens and the pooled states."""
    hidden_BSD, pooled_BD = states(model, batch)
    expected = reference(**_hf_inputs(batch, with_types))
    real = batch.attention_mask_BS
    hidden = (hidden_BSD - expected.last_hidden_state)[real].abs().max().item()
    return max(hidden, (pooled_BD - expected.pooler_output).abs().max().item())


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_bert_hidden_states_equal_those_of_transformers(tmp_path: Path, activation: str, routed: bool) -> None:
    reference = save_hf(tmp_path, "bert", hidden_act=activation, layer_norm_eps=1e-6)
    model, report = _imported(tmp_path, moe_config("token", layers="all") if routed else None)
    assert report.num_loaded == 5 + 2 * 12 + 2
    assert report.fresh == ()
    assert _largest_difference(model, reference, make_batch(extra_padding=2, vocab_size=60)) <= 1e-5


def test_whole_layers_of_task_groups_start_as_the_pretrained_layer(tmp_path: Path) -> None:
    reference = save_hf(tmp_path)
    config = model_config(moe_config(unit="block", experts_per_task_group=1), pretrained=str(tmp_path))
    model = make_model(config, shape=resolve_shape(config, 10, 0), partition=[[0, 2], [1]])
    assert load_pretrained(model, tmp_path, config=config, seed=0).upcycled_layers == (1,)
    assert _largest_difference(model, reference, make_batch(extra_padding=2, vocab_size=60)) <= 1e-5
    first, second = (model.encoder.layers[1].variants[name].state_dict() for name in ("g0", "g1"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_bert_without_token_types_equals_transformers(tmp_path: Path) -> None:
    reference = save_hf(tmp_path)
    batch = make_batch(vocab_size=60)
    batch = replace(batch, token_type_ids_BS=torch.zeros_like(batch.token_type_ids_BS))
    model, _ = _imported(tmp_path)
    assert _largest_difference(model, reference, batch, with_types=False) <= 1e-5


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("pad_token_id", [1, 3])
def test_roberta_hidden_states_equal_those_of_transformers(tmp_path: Path, pad_token_id: int, routed: bool) -> None:
    reference = save_hf(tmp_path, "roberta", pad_token_id=pad_token_id)
    model, _ = _imported(tmp_path, moe_config("sequence", layers="all") if routed else None)
    batch = make_batch((9, 4, 6, 1), extra_padding=2, vocab_size=60)
    ids_BS = batch.input_ids_BS.masked_fill(~batch.attention_mask_BS, pad_token_id)
    assert _largest_difference(model, reference, replace(batch, input_ids_BS=ids_BS), with_types=False) <= 1e-5


def test_real_checkpoint_equals_transformers_with_and_without_routing() -> None:
    folder = minilm_folder()
    reference = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = [
        ("A charming film.", "It was dull."),
        ("Who wrote it?", "Nobody knows, and it does not matter."),
        ("a", "b"),
    ]
    encoded = tokenizer([a for a, _ in pairs], [b for _, b in pairs], padding=True, return_tensors="pt")
    mask_BS = encoded["attention_mask"].bool()
    batch = replace(
        make_batch((1, 1, 1), (0, 1, 2)),
        input_ids_BS=encoded["input_ids"],
        attention_mask_BS=mask_BS,
        token_type_ids_BS=encoded["token_type_ids"],
        token_index_T=mask_BS.flatten().nonzero().squeeze(1),
    )
    for moe in (None, MoEConfig(num_experts=2, upcycle_noise=0.0)):
        model, report = _imported(folder, moe)
        assert report.num_loaded == 5 + 6 * 12 + 2
        assert report.upcycled_layers == (() if moe is None else (1, 3, 5))
        assert _largest_difference(model, reference, batch) <= 1e-5


def test_heads_are_left_out_by_name_and_an_absent_pooler_stays_fresh(tmp_path: Path) -> None:
    torch.manual_seed(0)
    BertForMaskedLM(hf_model("bert").config).save_pretrained(tmp_path)
    model, report = _imported(tmp_path)
    config = model_config(None, pretrained=str(tmp_path))
    untouched = make_model(config, shape=model.shape)
    assert report.ignored
    assert all(name.startswith("cls.") for name in report.ignored)
    assert report.fresh == ("pooler.dense.weight", "pooler.dense.bias")
    assert torch.equal(model.pooler.dense.weight, untouched.pooler.dense.weight)
    assert "freshly initialised: pooler.dense.weight" in str(report)


def test_noise_makes_experts_differ_reproducibly_and_dense_parameters_stay_exact(tmp_path: Path) -> None:
    reference = save_hf(tmp_path)
    (one, _), (again, _), (other, _) = (
        _imported(tmp_path, moe_config("token", upcycle_noise=0.01), seed=seed) for seed in (1, 1, 2)
    )
    name = "encoder.layers.1.feed_forward.pools.g0.w_in"
    first, second, third = (dict(model.named_parameters())[name] for model in (one, again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(one.encoder.layers[0].feed_forward.w_in, reference.encoder.layer[0].intermediate.dense.weight)


def test_sharded_and_half_precision_folders_are_read(tmp_path: Path) -> None:
    reference = hf_model("bert").half()
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model, _ = _imported(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.pooler.dense.weight, reference.pooler.dense.weight.float())


def _rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_missing_and_unexpected_tensors_are_refused_by_name(tmp_path: Path) -> None:
    save_hf(tmp_path)
    _rewrite(tmp_path, lambda tensors: tensors.pop("encoder.layer.0.output.dense.bias"))
    _rewrite(tmp_path, lambda tensors: tensors.update({"encoder.adapter.weight": torch.zeros(2)}))
    with pytest.raises(
        CheckpointError, match=r"(?s)missing: encoder.layer.0.output.dense.bias.*encoder.adapter.weight"
    ):
        _imported(tmp_path)


def test_a_model_of_fewer_layers_than_the_folder_is_refused(tmp_path: Path) -> None:
    save_hf(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(CheckpointError, match=r"(?s)1-layer.*unexpected: encoder.layer.1.*and 11 more"):
        _imported(tmp_path)


@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.1.intermediate.dense.weight"])
def test_tensors_of_another_shape_are_refused(tmp_path: Path, name: str) -> None:
    save_hf(tmp_path)
    _rewrite(tmp_path, lambda tensors: tensors.update({name: torch.zeros(3, 24)}))
    with pytest.raises(CheckpointError, match=r"(?s)\[3, 24\].*config.json"):
        _imported(tmp_path, moe_config("token"))


def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    model = save_hf(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"(?s)no safetensors.*only pytorch_model.bin.*save_pretrained"):
        _imported(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    save_hf(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)no safetensors.*no weights.*download"):
        _imported(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    save_hf(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"(?s)model.safetensors is damaged.*bytes.*again"):
        _imported(tmp_path)


def test_a_missing_shard_and_a_shard_outside_the_folder_are_refused(tmp_path: Path) -> None:
    hf_model("bert").save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    name = next(iter(values["weight_map"]))
    for shard in ("model-9.safetensors", "../model.safetensors"):
        index.write_text(json.dumps({"weight_map": values["weight_map"] | {name: shard}}))
        with pytest.raises(CheckpointError, match=rf"(?s)lacks shards.*missing {shard}"):
            _imported(tmp_path)


def test_expert_width_that_does_not_divide_the_dense_width_is_refused(tmp_path: Path) -> None:
    save_hf(tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)expert width 32, dense width 48"):
        _imported(tmp_path, moe_config("token", expert_size=32))


def test_the_configuration_of_another_family_is_refused_at_import(tmp_path: Path) -> None:
    save_hf(tmp_path)
    model, _ = _imported(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"model_type": "electra"}))
    with pytest.raises(ConfigError, match="electra"):
        load_pretrained(model, tmp_path, config=ModelConfig(), seed=0)
