"""Where a rank's tensor lies inside the global tensor of the same name.

Checkpoints know global tensors only. Dense parameters are global as they are; the stacked experts of a pool are rows
``first_expert ..`` of a tensor with one row per expert of the task group. Names are those of the model: layer and task
group are in the path (``encoder.layers.1.feed_forward.pools.g0.w_in``), the expert is the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from distmoe.moe.experts import ExpertPool

Shape = tuple[int, ...]


@dataclass(frozen=True)
class GlobalView:
    """One parameter or buffer of this rank.

    Attributes:
        name: Global name.
        local_shape: Shape on this rank.
        global_shape: Shape over all ranks.
        offset: First index of the local tensor in the global one, per dimension.
    """

    name: str
    local_shape: Shape
    global_shape: Shape
    offset: Shape


def replicated(name: str, shape: Shape) -> GlobalView:
    """The view of a tensor that every rank holds as a whole."""
    return GlobalView(name, shape, shape, (0,) * len(shape))


def expert_rows(name: str, shape: Shape, *, num_experts: int, first_expert: int) -> GlobalView:
    """The view of stacked experts: ``shape[0]`` rows of ``num_experts``, from ``first_expert`` on."""
    return GlobalView(name, shape, (num_experts, *shape[1:]), (first_expert, *(0 for _ in shape[1:])))


def global_views(model: nn.Module, shapes: Mapping[str, Shape] | None = None) -> dict[str, GlobalView]:
    """Returns the view of every parameter and persistent buffer, by name, in the model's order.

    Args:
        model: Any module; pools are recognised by their class.
        shapes: Local shapes of parameters by name, where the tensors no longer tell (ZeRO-3 empties them).
    """
    views: dict[str, GlobalView] = {}
    for path, module in model.named_modules():
        tensors = list(module.named_parameters(recurse=False))
        tensors += [
            (name, buffer)
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set
        ]
        for leaf, tensor in tensors:
            name = f"{path}.{leaf}" if path else leaf
            shape = tuple((shapes or {}).get(name, tensor.shape))
            if isinstance(module, ExpertPool):
                views[name] = expert_rows(name, shape, num_experts=module.num_experts, first_expert=module.first_expert)
            else:
                views[name] = replicated(name, shape)
    return views
