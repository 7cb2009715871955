"""Constants of one task in place of generators give the same outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit.nn.conditional.samples import (
    EVERYTHING,
    MASK_B11S,
    TASKS,
    B,
    SmallEncoder,
    assert_same,
    states,
    stirred,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "vector": EVERYTHING,
    "full": EVERYTHING | {"attention": EVERYTHING["attention"] | {"form": "full", "max_length": 9}},
    "scale only": EVERYTHING | {"layer_norm": {"layers": "all", "form": "scale_only"}},
    "tables": EVERYTHING | {"generator": "table"},
}


def _folded_forward(encoder: SmallEncoder, task: int, x_BSD: Tensor, mask_B11S: Tensor) -> Tensor:
    """The encoder from constants: no task id, no embedding and no generator is read behind the folding."""
    conditioning = encoder.conditioner.of_task(task)
    folded = [
        (
            layer.attention_bias.fold(conditioning),
            layer.attention_norm.fold(conditioning),
            layer.feed_forward_norm.fold(conditioning),
            layer.bottleneck.fold(conditioning),
        )
        for layer in encoder.layers
    ]
    x_BSD = encoder.alignment.fold(conditioning)(x_BSD)
    length = x_BSD.shape[1]
    for layer, (bias_LL, attention_norm, feed_forward_norm, bottleneck) in zip(encoder.layers, folded, strict=True):
        M_SS = torch.zeros(length, length)
        covered = min(length, bias_LL.shape[0])
        M_SS[:covered, :covered] = bias_LL[:covered, :covered]
        mask = torch.where(mask_B11S, M_SS, float("-inf"))
        assert type(attention_norm) is nn.LayerNorm
        x_BSD = attention_norm(x_BSD + layer.attention(x_BSD, mask))
        x_BSD = bottleneck(feed_forward_norm(x_BSD + layer.feed_forward(x_BSD)))
    return x_BSD


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_folded_encoder_is_the_unfolded_one(variant: str) -> None:
    encoder = stirred(SmallEncoder(VARIANTS[variant]), std=0.1)
    for task in range(TASKS):
        unfolded = encoder(states(), torch.full((B,), task), MASK_B11S)
        folded = _folded_forward(encoder, task, states(), MASK_B11S)
        assert_same(folded, unfolded)


def test_tasks_fold_to_different_constants() -> None:
    encoder = stirred(SmallEncoder(EVERYTHING))
    biases = [encoder.layers[0].attention_bias.fold(encoder.conditioner.of_task(task)) for task in range(TASKS)]
    assert (biases[0] - biases[1]).abs().max() > 0.01


def test_alignment_folds_into_the_layer_norm_before_it() -> None:
    """What makes an export without generators possible: the embeddings' own LayerNorm takes it up."""
    encoder = stirred(SmallEncoder(EVERYTHING))
    norm = stirred(nn.LayerNorm(states().shape[-1], eps=1e-12))
    conditioning = encoder.conditioner.of_task(3)
    expected = encoder.alignment(norm(states()), encoder.conditioner(torch.full((B,), 3)))
    folded = encoder.alignment.fold(conditioning).after(norm)
    assert type(folded) is nn.LayerNorm
    torch.testing.assert_close(folded(states()), expected, atol=1e-6, rtol=1e-6)


def test_folding_gives_copies() -> None:
    encoder = stirred(SmallEncoder(EVERYTHING))
    layer, conditioning = encoder.layers[0], encoder.conditioner.of_task(0)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with torch.no_grad():
        layer.bottleneck.fold(conditioning).w_up_Dr.add_(1)
        layer.attention_norm.fold(conditioning).bias.add_(1)
        layer.attention_bias.fold(conditioning).add_(1)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
