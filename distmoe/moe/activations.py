"""Activations of experts with their derivatives.

Shape letters: R rows, F feed-forward width, H = F or, with a gated activation, 2F: the gate packed before the other
factor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distmoe.errors import ConfigError

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
