"""A small encoder over given embedding outputs, composed of plain and conditional parts as a model composes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distmoe.config import build
from distmoe.nn.attention import SelfAttention
from distmoe.nn.conditional import (
    ConditionalConfig,
    ConditionalLayerNorm,
    Conditioning,
    LayerParts,
    build_conditional,
    reset_conditional,
)
from distmoe.nn.feed_forward import FeedForward

B, S, D, TASKS, LAYERS = 5, 7, 12, 4, 2
TASK_IDS_B = torch.tensor([2, 0, 2, 3, 0])  # task 1 is absent
LENGTHS_B1 = torch.tensor([[7], [3], [1], [5], [6]])
MASK_B11S = (torch.arange(S) < LENGTHS_B1)[:, None, None]
EVERYTHING: dict[str, Any] = {
    "embedding_size": 6,
    "attention": {"layers": "all", "block_side": 3, "max_length": 6},
    "layer_norm": {"layers": "all"},
    "bottleneck": {"layers": "all", "size": 4},
}
# D = 12 and L = 6: two published blocks of side 3.
REPO: dict[str, Any] = {"mode": "repo", "attention": {"max_length": 6}}


class Layer(nn.Module):
    def __init__(self, parts: LayerParts) -> None:
        super().__init__()
        self.attention = SelfAttention(D, 3, dropout=0.1)
        self.feed_forward = FeedForward(D, 20, "gelu")
        self.attention_norm = parts.attention_norm or nn.LayerNorm(D, eps=1e-12)
        self.feed_forward_norm = parts.feed_forward_norm or nn.LayerNorm(D, eps=1e-12)
        self.attention_bias, self.bottleneck = parts.attention_bias, parts.bottleneck
        self.dropout = nn.Dropout(0.1)

    def forward(self, x_BSD: Tensor, mask_B11S: Tensor, conditioning: Conditioning) -> Tensor:
        mask = mask_B11S
        if self.attention_bias is not None:
            mask = self.attention_bias(conditioning, mask_B11S, dtype=x_BSD.dtype)
        a_BSD = self._norm(self.attention_norm, x_BSD + self.dropout(self.attention(x_BSD, mask)), conditioning)
        h_BSD = self._norm(self.feed_forward_norm, a_BSD + self.dropout(self.feed_forward(a_BSD)), conditioning)
        return h_BSD if self.bottleneck is None else self.bottleneck(h_BSD, a_BSD, conditioning)

    @staticmethod
    def _norm(norm: nn.LayerNorm, x_BSD: Tensor, conditioning: Conditioning) -> Tensor:
        return norm(x_BSD, conditioning) if isinstance(norm, ConditionalLayerNorm) else norm(x_BSD)


class SmallEncoder(nn.Module):
    """Without ``values`` the plain one; the plain weights are the same in all."""

    def __init__(self, values: dict[str, Any] | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.conditioner = self.alignment = self.chain = None
        layers = (LayerParts(None, None, None, None),) * LAYERS
        if values is not None:
            parts = build_conditional(
                build(ConditionalConfig, values),
                num_tasks=TASKS,
                hidden_size=D,
                num_layers=LAYERS,
                layer_norm_eps=1e-12,
            )
            self.conditioner, self.alignment, self.chain = parts.conditioner, parts.alignment, parts.chain
            layers = parts.layers
        self.layers = nn.ModuleList(Layer(part) for part in layers)
        generator = torch.Generator().manual_seed(1)
        for index, layer in enumerate(self.layers):
            layer.attention.reset(seed, f"layers.{index}.attention", 0.3)
            layer.feed_forward.reset(seed, f"layers.{index}.feed_forward", 0.3)
            for norm in (layer.attention_norm, layer.feed_forward_norm):  # as after pre-training: not the identity
                nn.init.normal_(norm.weight, 1.0, 0.2, generator=generator)
                nn.init.normal_(norm.bias, 0.0, 0.2, generator=generator)
        reset_conditional(self, seed, "", 0.3)

    def forward(self, x_BSD: Tensor, task_ids_B: Tensor, mask_B11S: Tensor) -> Tensor:
        conditioning = None if self.conditioner is None else self.conditioner(task_ids_B)
        if self.alignment is not None:
            x_BSD = self.alignment(x_BSD, conditioning)
        states = [x_BSD := layer(x_BSD, mask_B11S, conditioning) for layer in self.layers]
        return x_BSD if self.chain is None else self.chain(states, conditioning)


def states(rows: int = B, length: int = S, seed: int = 0) -> Tensor:
    return torch.randn(rows, length, D, generator=torch.Generator().manual_seed(seed))


def trained(module: nn.Module, std: float = 0.3) -> nn.Module:
    """Fresh values for conditional modules alone, then stirred."""
    reset_conditional(module, 0, "m", 0.02)
    return stirred(module, std)


def assert_same(mine: Tensor, expected: Tensor) -> None:
    """To 1e-6 of the largest entry: states reach 3 to 30 here, and one rounding at 3 is already 1.2e-7."""
    torch.testing.assert_close(mine / expected.abs().max(), expected / expected.abs().max(), atol=1e-6, rtol=0)


def stirred(module: nn.Module, std: float = 0.3) -> nn.Module:
    """Noise on every parameter, as training leaves them: nothing is zero any more."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=std)
    return module.eval()
