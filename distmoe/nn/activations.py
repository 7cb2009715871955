"""Activations of feed-forward parts, under the names that Hugging Face configurations use."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from distmoe.errors import ConfigError

SWIGLU = "swiglu"
"""Name of the gated feed-forward part, ``silu(gate) * up``: not a function of one tensor, so not in the table."""


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Returns the function called ``name`` (the ``hidden_act`` of a Hugging Face configuration).

    Raises:
        ConfigError: If distmoe does not have it.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(
            "unknown activation of the feed-forward parts",
            got=name,
            expected=" | ".join(ACTIVATIONS),
            remedy='use an encoder whose config.json has one of these as "hidden_act"',
        )
    return ACTIVATIONS[name]
