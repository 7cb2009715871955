"""The module that DeepSpeed hosts: the model, and beside it what only DeepSpeed must see."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn


class HostedModel(nn.Module):
    """Wraps a model whose forward returns a frozen value.

    DeepSpeed prepares its backward pass in hooks on the tensors that a forward returns, and looks for them in tuples,
    lists and dictionaries only. So the forward here returns the value together with the tensors inside it.

    Args:
        model: Any module.
        marker: From :func:`distmoe.engine.compatibility.routed_marker`; None for a dense model.
    """

    def __init__(self, model: nn.Module, *, marker: nn.Module | None) -> None:
        super().__init__()
        self.model = model
        if marker is not None:
            self.marker = marker

    def forward(self, *inputs: Any) -> tuple[Any, list[Tensor]]:
        output = self.model(*inputs)
        return output, list(tensors_in(output))


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors inside nested dataclasses, tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_in(item)]
    if is_dataclass(value) and not isinstance(value, type):
        return [tensor for field in fields(value) for tensor in tensors_in(getattr(value, field.name))]
    return []
