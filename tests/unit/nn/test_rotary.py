"""Rotary positions against transformers and against what they are for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from distmoe.errors import ConfigError
from distmoe.nn.rotary import Rotary, RotaryConfig, turn

STRETCHED: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
}  # fmt: skip


@pytest.mark.parametrize("scaling", STRETCHED)
def test_angles_are_those_of_transformers(scaling: str) -> None:
    values = STRETCHED[scaling]
    theirs = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": scaling, "rope_theta": 500.0} | values,
    )
    own = {key.replace("_embeddings", "s"): value for key, value in values.items()}
    config = RotaryConfig(scaling=scaling, base=500.0, **own)  # type: ignore[arg-type]
    positions = torch.tensor([[0, 1, 5, 63, 64, 511]])
    wanted = LlamaRotaryEmbedding(theirs)(torch.zeros(1), positions)
    found = Rotary(config, head_size=32, max_positions=512)(positions)
    for ours, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.squeeze(1), reference, atol=1e-5, rtol=0)


def test_a_product_of_query_and_key_depends_on_their_distance_alone() -> None:
    rotary = Rotary(RotaryConfig(), head_size=8, max_positions=64)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator)
    products = [
        (turn(q, rotary(torch.tensor([[start + 3]]))) * turn(k, rotary(torch.tensor([[start]])))).sum()
        for start in (0, 7, 40)
    ]
    torch.testing.assert_close(torch.stack(products), products[0].expand(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(turn(q, rotary(torch.tensor([[0]]))), q)


def test_half_precision_keeps_the_frequencies() -> None:
    """Angles of position 1000 in bfloat16 would be wrong by whole turns."""
    rotary = Rotary(RotaryConfig(), head_size=8, max_positions=2048)
    exact = rotary(torch.tensor([[1000]]))
    x = torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    assert turn(x.bfloat16(), exact).dtype == torch.bfloat16
    torch.testing.assert_close(turn(x.bfloat16(), exact).float(), turn(x, exact), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("scaling", "borders"),
    [("llama3", {"low_freq_factor": 4.0, "high_freq_factor": 1.0}), ("yarn", {"beta_slow": 32.0, "beta_fast": 32.0})],
)
def test_borders_in_the_wrong_order_are_refused(scaling: Any, borders: dict[str, float]) -> None:
    RotaryConfig(factor=4.0, **borders)  # not read
    with pytest.raises(ConfigError, match="wrong order"):
        RotaryConfig(scaling=scaling, factor=4.0, **borders)
