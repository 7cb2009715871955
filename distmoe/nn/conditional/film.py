"""Feature-wise modulation ``(1 + gamma) x + beta``.

Shape letters: B sequences, S positions, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def film(x_BSD: Tensor, gamma_BD: Tensor, beta_BD: Tensor) -> Tensor:
    """Returns ``(1 + gamma) x + beta`` per row, in the dtype of ``x``; bitwise ``x`` where gamma and beta are zero."""
    return torch.addcmul(beta_BD.unsqueeze(1), x_BSD.float(), 1 + gamma_BD.unsqueeze(1)).to(x_BSD.dtype)


@torch.no_grad()
def layer_norm_of(weight_D: Tensor, bias_D: Tensor, *, eps: float) -> nn.LayerNorm:
    """Returns a plain LayerNorm with copies of the given weight and bias, ``[D]``."""
    norm = nn.LayerNorm(weight_D.shape[0], eps=eps, device=weight_D.device, dtype=weight_D.dtype)
    norm.weight.copy_(weight_D)
    norm.bias.copy_(bias_D)
    return norm
