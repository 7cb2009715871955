"""The feed-forward parts of all experts of a pool as one differentiable function of rows sorted by expert.

``y[r] = act(x[r] W_in^T + b_in) W_out^T + b_out`` with the tensors of row r's expert. For gated activations W_in packs
the gate in its first F outputs and the other factor in the last F: ``act(gate) * up``.

One function with its own backward instead of a chain of autograd nodes, for three reasons: it saves two tensors of
width F per row and nothing else; rows and elementwise work are reused in place; and it saves the *parameters*
themselves, not views of them, so that an optimizer that frees and regathers parameters (ZeRO-3) works with it.

Shape letters: R rows sorted by expert, e experts on this rank, D model width, F feed-forward width,
H = F or, with a gated activation, 2F.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from distmoe.errors import ConfigError
from distmoe.moe.kernels import Segments, segment_linear, segment_linear_input_grad, segment_outer, segment_sum

_aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """An activation and its derivative.

    Attributes:
        forward: h -> act(h).
        backward: (gradient of act(h), h) -> gradient of h.
        gated: Whether the activated half multiplies a second half.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    gated: bool = False

    def apply(self, h_RH: Tensor) -> Tensor:
        """``[R, H] -> [R, F]``."""
        if not self.gated:
            return self.forward(h_RH)
        gate_RF, up_RF = h_RH.chunk(2, dim=1)
        return self.forward(gate_RF).mul_(up_RF)

    def grad(self, grad_RF: Tensor, h_RH: Tensor) -> Tensor:
        """Gradient of ``h_RH`` from the gradient of :meth:`apply`'s result, which it may overwrite."""
        if not self.gated:
            return self.backward(grad_RF, h_RH)
        gate_RF, up_RF = h_RH.chunk(2, dim=1)
        grad_RH = torch.empty_like(h_RH)
        width = grad_RF.shape[1]
        torch.mul(grad_RF, self.forward(gate_RF), out=grad_RH[:, width:])
        grad_RH[:, :width] = self.backward(grad_RF.mul_(up_RF), gate_RF)
        return grad_RH


def _relu_backward(grad: Tensor, h: Tensor) -> Tensor:
    return _aten.threshold_backward(grad, h, 0)


def _gelu_tanh(h: Tensor) -> Tensor:
    return F.gelu(h, approximate="tanh")


def _gelu_tanh_backward(grad: Tensor, h: Tensor) -> Tensor:
    return _aten.gelu_backward(grad, h, approximate="tanh")


_GELU = Activation(F.gelu, _aten.gelu_backward)
_GELU_TANH = Activation(_gelu_tanh, _gelu_tanh_backward)
_SILU = Activation(F.silu, _aten.silu_backward)

EXPERT_ACTIVATIONS: dict[str, Activation] = {
    "gelu": _GELU,
    "gelu_new": _GELU_TANH,
    "gelu_pytorch_tanh": _GELU_TANH,
    "relu": Activation(F.relu, _relu_backward),
    "silu": _SILU,
    "swish": _SILU,
    "swiglu": Activation(F.silu, _aten.silu_backward, gated=True),
}


def expert_activation(name: str) -> Activation:
    """Returns the activation called ``name``; ``swiglu`` is the gated one.

    Raises:
        ConfigError: If experts do not have it.
    """
    if name not in EXPERT_ACTIVATIONS:
        raise ConfigError(
            "unknown activation of the experts",
            got=name,
            expected=" | ".join(EXPERT_ACTIVATIONS),
            remedy="use a model with one of these activations",
        )
    return EXPERT_ACTIVATIONS[name]


def expert_mlp(
    x_RD: Tensor,
    w_in_eHD: Tensor,
    b_in_eH: Tensor | None,
    w_out_eDF: Tensor,
    b_out_eD: Tensor | None,
    *,
    segments: Segments,
    activation: Activation,
) -> Tensor:
    """Every row through its expert, ``[R, D]``. Zero rows, and experts without rows, give zero gradients, not none."""
    return _ExpertMlp.apply(x_RD, w_in_eHD, b_in_eH, w_out_eDF, b_out_eD, segments, activation)


class _ExpertMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RD: Tensor,
        w_in_eHD: Tensor,
        b_in_eH: Tensor | None,
        w_out_eDF: Tensor,
        b_out_eD: Tensor | None,
        segments: Segments,
        activation: Activation,
    ) -> Tensor:
        ctx.segments, ctx.activation = segments, activation
        ctx.has_bias = b_in_eH is not None, b_out_eD is not None
        if segments.num_rows == 0:
            ctx.save_for_backward(x_RD, w_in_eHD, w_out_eDF)
            return x_RD.new_empty(0, w_out_eDF.shape[1])
        h_RH = segment_linear(x_RD, w_in_eHD, b_in_eH, segments)
        a_RF = activation.apply(h_RH)
        ctx.save_for_backward(x_RD, w_in_eHD, w_out_eDF, h_RH, a_RF)
        return segment_linear(a_RF, w_out_eDF, b_out_eD, segments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        segments: Segments = ctx.segments
        x_RD, w_in_eHD, w_out_eDF, *saved = ctx.saved_tensors
        has_b_in, has_b_out = ctx.has_bias
        if segments.num_rows == 0:
            zeros_in, zeros_out = torch.zeros_like(w_in_eHD), torch.zeros_like(w_out_eDF)
            b_in = w_in_eHD.new_zeros(w_in_eHD.shape[:2]) if has_b_in else None
            b_out = w_out_eDF.new_zeros(w_out_eDF.shape[:2]) if has_b_out else None
            return torch.zeros_like(x_RD), zeros_in, b_in, zeros_out, b_out, None, None
        h_RH, a_RF = saved
        need_x, need_w_in, need_b_in, need_w_out, need_b_out = ctx.needs_input_grad[:5]
        # grouped_mm refuses expanded gradients, such as those of y.sum().
        grad_RD = grad_RD.contiguous()
        grad_w_out = segment_outer(grad_RD, a_RF, segments) if need_w_out else None
        grad_b_out = segment_sum(grad_RD, segments) if has_b_out and need_b_out else None
        grad_RF = segment_linear_input_grad(grad_RD, w_out_eDF, segments)
        grad_RH = ctx.activation.grad(grad_RF, h_RH)
        grad_w_in = segment_outer(grad_RH, x_RD, segments) if need_w_in else None
        grad_b_in = segment_sum(grad_RH, segments) if has_b_in and need_b_in else None
        grad_x = segment_linear_input_grad(grad_RH, w_in_eHD, segments) if need_x else None
        return grad_x, grad_w_in, grad_b_in, grad_w_out, grad_b_out, None, None
