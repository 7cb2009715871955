"""Which parts of a model are not trained: chosen by module, never by name.

The published CA-MTL code exempts parameters from freezing by substrings of their names; one generator matched none
and stayed frozen at random values, without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn

from distmoe.errors import ConfigError
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.moe.layer import RoutedFeedForward
from distmoe.nn.conditional.generator import TableGenerator
from distmoe.nn.conditional.module import conditional_parameters
from distmoe.nn.conditional.task_embedding import TaskTable

Freeze = Literal["none", "embeddings", "lower_half", "body"] | list[int]


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
        return tuple(range({"lower_half": num_layers // 2, "body": num_layers}.get(choice, 0)))
    if len(set(choice)) != len(choice) or not set(choice) <= set(range(num_layers)):
        raise ConfigError(
            "model.freeze names layers that the model does not have, or one twice",
            got=list(choice),
            expected=f"different numbers from 0 to {num_layers - 1}",
            remedy="correct model.freeze; lower_half freezes the lower half, embeddings no layer, body all of them",
        )
    return tuple(sorted(choice))


def first_trainable_layer(choice: Freeze, num_layers: int) -> int:
    """Returns the lowest layer that is not frozen, which is ``num_layers`` if all are."""
    frozen = frozen_layers(choice, num_layers) or ()
    return next((layer for layer in range(num_layers) if layer not in frozen), num_layers)


def freeze_parts(model: MultiTaskEncoder | MultiTaskDecoder, choice: Freeze) -> None:
    """Takes the gradient of the chosen parts away.

    What conditioning added stays trainable, also inside frozen layers. So do gates: a router that cannot move cannot
    balance the load that the trained layers below or above send to it.

    ``body`` leaves what single tasks own, and nothing else: heads, and each task's own row of a gate or a conditional
    table. A task that is not trained then computes what it computed before, bit for bit.

    Raises:
        ConfigError: If single tasks own nothing, so that nothing would be trained.
    """
    stack = model.encoder if isinstance(model, MultiTaskEncoder) else model.decoder
    layers = frozen_layers(choice, len(stack.layers))
    if layers is None:
        return
    if choice == "body":
        model.requires_grad_(False)
        rows = tuple(_rows_of_tasks(model))
        if not rows:
            raise ConfigError(
                "nothing is left to train: the body is frozen and no task owns a part of the model",
                got="model.freeze=body with one head for all tasks, and gates without a row per task",
                expected="a head, a gate or a conditional table with a part of its own for each task",
                remedy="set model.decoder.head=per_task, or a gate such as task or per_task",
            )
        for parameter in rows:
            parameter.requires_grad_(True)
        return
    for module in (stack.embeddings, *(stack.layers[index] for index in layers)):
        kept = {id(parameter) for parameter in _kept(module)}
        for parameter in module.parameters():
            parameter.requires_grad_(id(parameter) in kept)


def _rows_of_tasks(model: MultiTaskEncoder | MultiTaskDecoder) -> Iterator[nn.Parameter]:
    if isinstance(model, MultiTaskEncoder):
        yield from model.heads.parameters()
    elif model.heads.weight_MVD is not None:  # one head of all tasks belongs to the body
        yield model.heads.weight_MVD
    for part in model.modules():
        if isinstance(part, RoutedFeedForward):
            yield from part.gate.task_parameters()
        elif isinstance(part, TaskTable):
            yield part.z_Tk
        elif isinstance(part, TableGenerator):
            yield part.table_Tm


def _kept(module: nn.Module) -> Iterator[nn.Parameter]:
    added = conditional_parameters(module)
    yield from (parameter for name, parameter in module.named_parameters() if name in added)
    for part in module.modules():
        if isinstance(part, RoutedFeedForward):
            yield from part.gate.parameters()
