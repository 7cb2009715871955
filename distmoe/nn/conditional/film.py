"""Feature-wise modulation ``(1 + gamma) x + beta``.

Shape letters: B sequences, S positions, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


def film(x_BSD: Tensor, gamma_BD: Tensor, beta_BD: Tensor) -> Tensor:
    """Returns ``(1 + gamma) x + beta`` per row, in the dtype of ``x``; bitwise ``x`` where gamma and beta are zero."""
    return torch.addcmul(beta_BD.unsqueeze(1), x_BSD.float(), 1 + gamma_BD.unsqueeze(1)).to(x_BSD.dtype)


@dataclass(frozen=True)
class FoldedFilm:
    """The modulation of one task as constants: ``scale * x + shift``, both ``[D]`` float32."""

    scale_D: Tensor
    shift_D: Tensor

    def __call__(self, x_BSD: Tensor) -> Tensor:
        return torch.addcmul(self.shift_D, x_BSD.float(), self.scale_D).to(x_BSD.dtype)

    def after(self, norm: nn.LayerNorm) -> nn.LayerNorm:
        """Returns the LayerNorm that does what ``norm`` followed by this modulation does (in evaluation)."""
        return layer_norm_of(
            self.scale_D * norm.weight.float(), self.scale_D * norm.bias.float() + self.shift_D, eps=norm.eps
        )


@torch.no_grad()
def layer_norm_of(weight_D: Tensor, bias_D: Tensor, *, eps: float) -> nn.LayerNorm:
    """Returns a plain LayerNorm with copies of the given weight and bias, ``[D]``."""
    norm = nn.LayerNorm(weight_D.shape[0], eps=eps, device=weight_D.device, dtype=weight_D.dtype)
    norm.weight.copy_(weight_D)
    norm.bias.copy_(bias_D)
    return norm
