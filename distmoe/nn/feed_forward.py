"""The dense feed-forward part of a Transformer layer.

Shape letters: D model width, F feed-forward width, H = F or, gated, 2F; leading axes are free.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmoe.nn.activations import SWIGLU
from distmoe.nn.activations import activation as activation_named
from distmoe.nn.init import init_normal_


class FeedForward(nn.Module):
    """``act(x W_in^T + b_in) W_out^T + b_out``, or gated (SwiGLU): ``(silu(x W_gate^T) * x W_up^T) W_out^T``.

    The tensors have the layout of one row of an expert pool's stacked tensors, so that turning a dense part into
    experts is stacking: ``w_in [H, D]``, gated packs gate (first) and up; a gated part has no biases.

    Args:
        hidden_size: D.
        intermediate_size: F.
        activation: Name in :data:`distmoe.nn.activations.ACTIVATIONS`, or ``swiglu``.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str) -> None:
        super().__init__()
        self.gated = activation == SWIGLU
        self.act = activation_named("silu" if self.gated else activation)
        width = 2 * intermediate_size if self.gated else intermediate_size
        self.w_in = nn.Parameter(torch.empty(width, hidden_size))
        self.b_in = None if self.gated else nn.Parameter(torch.empty(width))
        self.w_out = nn.Parameter(torch.empty(hidden_size, intermediate_size))
        self.b_out = None if self.gated else nn.Parameter(torch.empty(hidden_size))

    def reset(self, seed: int, name: str, std: float) -> None:
        """Fresh weights from the streams ``<name>.w_in`` and ``<name>.w_out``; biases are zero."""
        init_normal_(self.w_in, seed=seed, name=f"{name}.w_in", std=std)
        init_normal_(self.w_out, seed=seed, name=f"{name}.w_out", std=std)
        for bias in (self.b_in, self.b_out):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., D]`` to ``[..., D]``; the residual is the caller's."""
        return F.linear(self.hidden(x), self.w_out, self.b_out)

    def hidden(self, x: Tensor) -> Tensor:
        """The activations ``[..., F]`` in between."""
        return self.activated(F.linear(x, self.w_in, self.b_in))

    def activated(self, h: Tensor) -> Tensor:
        """Maps ``[..., H]`` to ``[..., F]``."""
        if self.gated:
            gate, up = h.chunk(2, dim=-1)
            return self.act(gate) * up
        return self.act(h)
