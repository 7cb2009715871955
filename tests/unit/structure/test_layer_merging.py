"""Order of attention heads and hidden units: a permuted layer computes the same, and alignment finds its way back."""

from __future__ import annotations

import torch
from torch import Tensor

from distmoe.nn.attention import SelfAttention
from distmoe.nn.feed_forward import FeedForward
from distmoe.structure.layer_merging import LayerOrder, align_layer, permute_layer

D, H, F = 12, 3, 10


def layer(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: value.shape for name, value in modules().state_dict().items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def modules() -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict(
        {"attention": SelfAttention(D, H, dropout=0.0), "feed_forward": FeedForward(D, F, "gelu")}
    )


@torch.no_grad()
def output(tensors: dict[str, Tensor]) -> Tensor:
    parts = modules()
    parts.load_state_dict(tensors)
    x_BSD = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(9))
    x_BSD = parts["attention"](x_BSD, torch.ones(2, 1, 1, 5, dtype=torch.bool))
    return parts["feed_forward"](x_BSD)


def shuffled(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], LayerOrder]:
    order = LayerOrder(torch.tensor([2, 0, 1]), torch.randperm(F, generator=torch.Generator().manual_seed(1)))
    return permute_layer(tensors, order, num_heads=H), order


def test_another_order_of_heads_and_units_computes_the_same() -> None:
    own = layer(0)
    other, _ = shuffled(own)
    assert not torch.equal(other["attention.qkv.weight"], own["attention.qkv.weight"])
    torch.testing.assert_close(output(other), output(own), rtol=0, atol=1e-3)


def test_alignment_brings_a_shuffled_and_slightly_changed_copy_back() -> None:
    own = layer(0)
    other, order = shuffled({name: value + 0.01 * layer(5)[name] for name, value in own.items()})
    found = align_layer(own, other, num_heads=H)
    assert found.heads_H.tolist() == order.heads_H.argsort().tolist()
    assert found.units_F.tolist() == order.units_F.argsort().tolist()
    back = permute_layer(other, found, num_heads=H)
    assert all((back[name] - own[name]).abs().max() < 0.1 for name in own)
    assert any((other[name] - own[name]).abs().max() > 1.0 for name in own)


def test_layers_that_started_alike_keep_their_order() -> None:
    own = layer(0)
    found = align_layer(own, {name: value + 0.01 * layer(7)[name] for name, value in own.items()}, num_heads=H)
    assert found.heads_H.tolist() == list(range(H))
    assert found.units_F.tolist() == list(range(F))
