"""The dense feed-forward part of a Transformer layer.

Shape letters: D model width, F feed-forward width; leading axes are free.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmoe.nn.activations import activation as activation_named
from distmoe.nn.init import init_normal_


class FeedForward(nn.Module):
    """``act(x W_in^T + b_in) W_out^T + b_out``.

    The four tensors have the layout of one row of an expert pool's stacked tensors, so that turning a dense part into
    experts is stacking.

    Args:
        hidden_size: D.
        intermediate_size: F.
        activation: Name in :data:`distmoe.nn.activations.ACTIVATIONS`.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str) -> None:
        super().__init__()
        self.act = activation_named(activation)
        self.w_in = nn.Parameter(torch.empty(intermediate_size, hidden_size))
        self.b_in = nn.Parameter(torch.empty(intermediate_size))
        self.w_out = nn.Parameter(torch.empty(hidden_size, intermediate_size))
        self.b_out = nn.Parameter(torch.empty(hidden_size))

    def reset(self, seed: int, name: str, std: float) -> None:
        """Fresh weights from the streams ``<name>.w_in`` and ``<name>.w_out``; biases are zero."""
        init_normal_(self.w_in, seed=seed, name=f"{name}.w_in", std=std)
        init_normal_(self.w_out, seed=seed, name=f"{name}.w_out", std=std)
        nn.init.zeros_(self.b_in)
        nn.init.zeros_(self.b_out)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., D]`` to ``[..., D]``; the residual is the caller's."""
        return F.linear(self.act(F.linear(x, self.w_in, self.b_in)), self.w_out, self.b_out)
