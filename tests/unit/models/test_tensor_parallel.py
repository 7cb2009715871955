"""What is cut and what stays; that ranks compute with the slices as one process does is in tests/distributed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from distmoe.errors import ParallelError
from distmoe.models.decoder_config import DecoderConfig
from distmoe.models.decoder_shape import decoder_shape
from distmoe.models.parameters import parameter_roles
from distmoe.models.sequence_modules import SLICED
from distmoe.models.tensor_modules import slice_of
from distmoe.models.tensor_parallel import check_tensor, cut_over_tensor_ranks
from distmoe.moe.layer import RoutedFeedForward
from tests.unit.models.decoder_samples import VOCAB_SIZE, decoder_config, make_decoder
from tests.unit.models.samples import make_model, model_config, moe_config

DECODER = decoder_config(
    moe_config("token", layers=[1], shared_expert=True),
    decoder=DecoderConfig(num_kv_heads=2, qk_norm=True, attention_bias=True, head="shared"),
)


def test_a_slice_has_a_run_of_every_section() -> None:
    """Gate rows 0-3, up rows 4-7."""
    assert slice_of(torch.arange(8), dim=0, sections=2, rank=0, num_ranks=2).tolist() == [0, 1, 4, 5]
    assert slice_of(torch.arange(8), dim=0, sections=1, rank=1, num_ranks=4).tolist() == [2, 3]
    assert [len(slice_of(torch.arange(7), dim=0, sections=1, rank=rank, num_ranks=3)) for rank in range(3)] == [3, 3, 1]
    assert slice_of(torch.arange(8).view(2, 4), dim=1, sections=1, rank=1, num_ranks=2).tolist() == [[2, 3], [6, 7]]


def cut(model: nn.Module, rank: int) -> dict[str, tuple[tuple[int, ...], int, int]]:
    """Shape, dimension and sections of the slices of a rank of two."""
    group: Any = SimpleNamespace(rank=lambda: rank, size=lambda: 2)
    cut_over_tensor_ranks(model, group)
    return {
        name: (tuple(parameter.shape), parameter.partition_dim, parameter.partition_stride)  # type: ignore[attr-defined]
        for name, parameter in model.named_parameters()
        if getattr(parameter, "tensor_model_parallel", False)
    }


def test_a_decoders_matrices_are_cut_and_its_experts_are_whole() -> None:
    model = make_decoder(DECODER)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    roles = parameter_roles(model)
    slices = cut(model, rank=1)
    assert parameter_roles(model) == roles
    for layer in ("decoder.layers.0", "decoder.layers.1"):
        attention = {
            f"{layer}.attention.q.weight": ((8, 16), 0, 1),
            f"{layer}.attention.q.bias": ((8,), 0, 1),
            f"{layer}.attention.k.weight": ((4, 16), 0, 1),
            f"{layer}.attention.k.bias": ((4,), 0, 1),
            f"{layer}.attention.v.weight": ((4, 16), 0, 1),
            f"{layer}.attention.v.bias": ((4,), 0, 1),
            f"{layer}.attention.out.weight": ((16, 8), 1, 1),
        }
        part = "feed_forward" if layer.endswith("0") else "feed_forward.shared_mlp"
        dense = {f"{layer}.{part}.w_in": ((32, 16), 0, 2), f"{layer}.{part}.w_out": ((16, 16), 1, 1)}
        assert {name: one for name, one in slices.items() if name.startswith(layer)} == attention | dense
    rest = {name for name in slices if ".layers." not in name}
    assert rest == {"decoder.embeddings.weight", "heads.weight_VD"}
    for name, parameter in model.named_parameters():
        if name in slices:
            _, dim, sections = slices[name]
            assert torch.equal(parameter, slice_of(before[name], dim=dim, sections=sections, rank=1, num_ranks=2))
        else:
            assert torch.equal(parameter, before[name])


def test_an_encoders_packed_projection_has_three_sections() -> None:
    model = make_model(model_config(num_layers=1))
    model.encoder.layers[0].attention.qkv.weight.requires_grad_(False)
    slices = cut(model, rank=0)
    layer = "encoder.layers.0"
    assert {name.removeprefix(f"{layer}."): sections for name, (_, _, sections) in slices.items()} == {
        "encoder.embeddings.word.weight": 1,
        "attention.qkv.weight": 3,
        "attention.qkv.bias": 3,
        "attention.out.weight": 1,
        "feed_forward.w_in": 1,
        "feed_forward.b_in": 1,
        "feed_forward.w_out": 1,
    }
    assert not model.encoder.layers[0].attention.qkv.weight.requires_grad


def test_slices_of_positions_change_classes_between_the_cut_parts_and_no_name() -> None:
    """The routed part of the decoder's second layer, its shared expert included, sees all positions."""
    group: Any = SimpleNamespace(rank=lambda: 1, size=lambda: 2)
    encoder = model_config(moe_config("token", layers=[1], shared_expert=True), dropout=0.1, norm="pre")
    for make, config in ((make_decoder, DECODER), (make_model, encoder)):
        whole, sliced = make(config), make(config)  # type: ignore[operator]
        cut_over_tensor_ranks(whole, group)
        cut_over_tensor_ranks(sliced, group, sequence=True)
        assert [name for name, _ in sliced.named_parameters()] == [name for name, _ in whole.named_parameters()]
        assert parameter_roles(sliced) == parameter_roles(whole)
        kinds = {name: (type(module), type(sliced.get_submodule(name))) for name, module in whole.named_modules()}
        changed = {name: new for name, (old, new) in kinds.items() if new is not old}
        assert set(changed.values()) <= set(SLICED.values())
        stays = {name for name, (old, _) in kinds.items() if old in SLICED and name not in changed}
        routed = next(name for name, module in whole.named_modules() if isinstance(module, RoutedFeedForward))
        assert stays == {f"{routed}.shared_mlp"} | ({"dropout"} if make is make_model else set())


@pytest.mark.parametrize(
    ("changes", "tensor", "text"),
    [
        ({}, 3, r"attention heads cannot[\s\S]*model.num_heads=4, parallel.tensor=3[\s\S]*a divisor of 4"),
        ({}, 4, r"key-value heads cannot[\s\S]*model.decoder.num_kv_heads=2, parallel.tensor=4"),
        ({"intermediate_size": 33}, 2, r"hidden units[\s\S]*model.intermediate_size=33, parallel.tensor=2"),
        ({"vocab_size": 1}, 2, r"vocabulary is too small[\s\S]*1 tokens, parallel.tensor=2[\s\S]*more than 1 tokens"),
    ],
)
def test_sizes_that_cannot_be_cut_are_refused(changes: dict[str, int], tensor: int, text: str) -> None:
    shape = decoder_shape(DECODER, VOCAB_SIZE, 0)
    with pytest.raises(ParallelError, match=text):
        check_tensor(replace(shape, **changes), tensor)  # type: ignore[arg-type]
    check_tensor(replace(shape, **changes), 1)  # type: ignore[arg-type]
    check_tensor(shape, 2)
