import pytest
import torch
from torch import Tensor

from distmoe.checkpoint.key_tables import from_hf, normalised, rows, to_hf


def _hf_tensors(num_layers: int = 2, prefix: str = "", pooler: bool = True) -> dict[str, Tensor]:
    """One different scalar-valued tensor per name; matrices of a packed projection have 2 rows."""
    names = [name for row in rows(num_layers) for name in row.hf if pooler or not name.startswith("pooler")]
    return {prefix + name: torch.full((2, 3), float(i)) for i, name in enumerate(names)}


@pytest.mark.parametrize("prefix", ["", "bert.", "roberta."])
def test_table_covers_a_checkpoint_of_each_prefix_without_rest(prefix: str) -> None:
    translation = from_hf(_hf_tensors(prefix=prefix), 2)
    assert (translation.missing, translation.unexpected, translation.ignored) == ((), (), ())
    assert len(translation.tensors) == 5 + 2 * 12 + 2


def test_there_and_back_returns_the_same_tensors() -> None:
    tensors = _hf_tensors()
    back = to_hf(from_hf(tensors, 2).tensors, 2)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_queries_keys_and_values_are_packed_in_this_order() -> None:
    tensors = _hf_tensors()
    packed = from_hf(tensors, 2).tensors["encoder.layers.1.attention.qkv.weight"]
    parts = [tensors[f"encoder.layer.1.attention.self.{part}.weight"] for part in ("query", "key", "value")]
    assert torch.equal(packed, torch.cat(parts))


def test_missing_and_unexpected_are_named() -> None:
    tensors = _hf_tensors()
    del tensors["encoder.layer.1.attention.self.key.weight"]
    tensors["encoder.layer.2.output.dense.bias"] = torch.zeros(1)
    translation = from_hf(tensors, 2)
    assert translation.missing == ("encoder.layer.1.attention.self.key.weight",)
    assert translation.unexpected == ("encoder.layer.2.output.dense.bias",)


def test_heads_and_old_buffers_are_left_out_by_name() -> None:
    extra = {"cls.predictions.bias", "lm_head.dense.weight", "classifier.weight", "bert.embeddings.position_ids"}
    translation = from_hf(_hf_tensors() | {name: torch.zeros(1) for name in extra}, 2)
    assert set(translation.ignored) == extra
    assert (translation.missing, translation.unexpected) == ((), ())


def test_a_checkpoint_without_pooler_is_complete() -> None:
    translation = from_hf(_hf_tensors(pooler=False), 2)
    assert (translation.missing, translation.has_pooler) == ((), False)


def test_half_a_pooler_is_not() -> None:
    tensors = _hf_tensors()
    del tensors["pooler.dense.bias"]
    assert from_hf(tensors, 2).missing == ("pooler.dense.bias",)


def test_old_layer_norm_names_are_today_s() -> None:
    assert normalised("bert.embeddings.LayerNorm.gamma") == "embeddings.LayerNorm.weight"
    assert normalised("bert.encoder.layer.0.output.LayerNorm.beta") == "encoder.layer.0.output.LayerNorm.bias"
