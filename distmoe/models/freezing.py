"""Which parts of a model are not trained: chosen by module, never by name.

The published CA-MTL code exempts parameters from freezing by substrings of their names; one generator matched none
and stayed frozen at random values, without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn

from distmoe.errors import ConfigError
from distmoe.models.decoder import Decoder
from distmoe.models.encoder import Encoder
from distmoe.moe.layer import RoutedFeedForward
from distmoe.nn.conditional.module import conditional_parameters

Freeze = Literal["none", "embeddings", "lower_half"] | list[int]


def frozen_layers(choice: Freeze, num_layers: int) -> tuple[int, ...] | None:
    """Returns the 0-based layers that are frozen together with the embeddings; None: nothing is frozen.

    Args:
        choice: ``model.freeze``; ``lower_half`` is the smaller half of an odd number.
        num_layers: Layers of the model.

    Raises:
        ConfigError: If a listed layer does not exist or occurs twice.
    """
    if choice == "none":
        return None
    if isinstance(choice, str):
        return tuple(range(num_layers // 2)) if choice == "lower_half" else ()
    if len(set(choice)) != len(choice) or not set(choice) <= set(range(num_layers)):
        raise ConfigError(
            "model.freeze names layers that the model does not have, or one twice",
            got=list(choice),
            expected=f"different numbers from 0 to {num_layers - 1}",
            remedy="correct model.freeze; lower_half freezes the lower half, embeddings no layer at all",
        )
    return tuple(sorted(choice))


def first_trainable_layer(choice: Freeze, num_layers: int) -> int:
    """Returns the lowest layer that is not frozen, which is ``num_layers`` if all are."""
    frozen = frozen_layers(choice, num_layers) or ()
    return next((layer for layer in range(num_layers) if layer not in frozen), num_layers)


def freeze_parts(stack: Encoder | Decoder, choice: Freeze) -> None:
    """Takes the gradient of the chosen parts away.

    What conditioning added stays trainable, also inside frozen layers. So do gates: a router that cannot move cannot
    balance the load that the trained layers below or above send to it.
    """
    layers = frozen_layers(choice, len(stack.layers))
    if layers is None:
        return
    for module in (stack.embeddings, *(stack.layers[index] for index in layers)):
        kept = {id(parameter) for parameter in _kept(module)}
        for parameter in module.parameters():
            parameter.requires_grad_(id(parameter) in kept)


def _kept(module: nn.Module) -> Iterator[nn.Parameter]:
    added = conditional_parameters(module)
    yield from (parameter for name, parameter in module.named_parameters() if name in added)
    for part in module.modules():
        if isinstance(part, RoutedFeedForward):
            yield from part.gate.parameters()
