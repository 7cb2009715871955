"""A LayerNorm whose output is scaled and shifted per row, as one operation with a backward pass of its own.

Autograd would keep the normalised states beside the input for the backward pass, and would write four tensors of
their size there. This keeps the input alone, like a plain LayerNorm, and writes two.

Shape letters: B sequences, S positions, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def modulated_layer_norm(
    x_BSD: Tensor, weight_D: Tensor, bias_D: Tensor, scale_BD: Tensor, shift_BD: Tensor, *, eps: float
) -> Tensor:
    """Returns ``LN(x) * scale + shift`` per row, ``[B, S, D]``; bitwise ``LN(x)`` where scale is 1 and shift 0.

    Args:
        x_BSD: Float32, as everything else is.
        weight_D: Weight of the LayerNorm.
        bias_D: Its bias.
        scale_BD: Of all positions of a row.
        shift_BD: Of all positions of a row.
        eps: Epsilon of the normalisation.
    """
    return _ModulatedLayerNorm.apply(x_BSD, weight_D, bias_D, scale_BD, shift_BD, eps)  # type: ignore[no-any-return]


class _ModulatedLayerNorm(torch.autograd.Function):
    """With ``n`` the normalised states and ``g`` the gradient of the output, per row: ``sum g`` and ``sum g n`` over
    positions give the gradients of shift and scale, and of bias and weight too.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BSD: Tensor, weight_D: Tensor, bias_D: Tensor, scale_BD: Tensor, shift_BD: Tensor, eps: float
    ) -> Tensor:
        y_BSD, mean_BS1, rstd_BS1 = torch.native_layer_norm(x_BSD, weight_D.shape, weight_D, bias_D, eps)
        ctx.save_for_backward(x_BSD, mean_BS1, rstd_BS1, weight_D, bias_D, scale_BD)
        ctx.eps = eps
        return torch.addcmul(shift_BD.unsqueeze(1), y_BSD, scale_BD.unsqueeze(1), out=y_BSD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BSD: Tensor) -> tuple[Tensor | None, ...]:
        x_BSD, mean_BS1, rstd_BS1, weight_D, bias_D, scale_BD = ctx.saved_tensors
        # With ones and zeros it takes 0.4 to 0.6 of the time that it takes without weight and bias (CPU).
        ones_D, zeros_D = torch.ones_like(weight_D), torch.zeros_like(bias_D)
        buffer_BSD = torch.native_layer_norm(x_BSD, weight_D.shape, ones_D, zeros_D, ctx.eps)[0].mul_(g_BSD)
        gn_BD, g_BD = buffer_BSD.sum(1), g_BSD.sum(1)
        torch.mul(g_BSD, scale_BD.unsqueeze(1), out=buffer_BSD)
        x_grad_BSD, _, _ = torch.ops.aten.native_layer_norm_backward(
            buffer_BSD, x_BSD, weight_D.shape, mean_BS1, rstd_BS1, weight_D, bias_D, [True, False, False]
        )
        scale_grad_BD = torch.addcmul(g_BD * bias_D, gn_BD, weight_D)
        return x_grad_BSD, (gn_BD * scale_BD).sum(0), (g_BD * scale_BD).sum(0), scale_grad_BD, g_BD, None
