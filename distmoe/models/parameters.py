"""What each parameter of a model is to the optimizer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

from distmoe.models.heads import TaskHeads
from distmoe.nn.conditional.module import conditional_parameters

RoleKind = Literal["dense", "gate", "head", "pool"]

_LAYER = re.compile(r"(?:^|\.)(?:encoder|decoder)\.layers\.(\d+)\.(?:feed_forward\.(gate|pools)|(variants))\.")


@dataclass(frozen=True)
class Role:
    """One parameter's part in training.

    Attributes:
        kind: ``pool``: an expert's weights, or those of a task group's own layer, held where they are hosted;
            ``gate``: routers and task tables, with their own learning rate; ``head``; ``dense``: all others. Only
            pools are not replicated on every rank.
        decay: Whether weight decay applies: not to biases and norms, nor to what modulates them by task.
        routed_index: For gates and pools, the index of their routed layer (0 is the shallowest), else None.
    """

    kind: RoleKind
    decay: bool
    routed_index: int | None


def parameter_roles(model: nn.Module, *, frozen: bool = False) -> dict[str, Role]:
    """Returns the role of every trainable parameter, by full name, in the model's order.

    Args:
        model: A model of :mod:`distmoe.models`.
        frozen: Also of those that are not trained: a frozen pool is not replicated on every rank either.
    """
    names = [name for name, parameter in model.named_parameters() if frozen or parameter.requires_grad]
    no_decay, conditional = _norm_parameters(model), conditional_parameters(model)
    routed = sorted({int(match[1]) for name, _ in model.named_parameters() if (match := _LAYER.search(name))})
    return {
        name: _role(name, routed, decay=conditional.get(name, name not in no_decay and not _is_bias(name)))
        for name in names
    }


def added_parameters(model: nn.Module) -> frozenset[str]:
    """Names of what stands on top of a pretrained backbone: conditional modules and heads."""
    heads = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, TaskHeads)
        for name, _ in module.named_parameters()
    }
    return frozenset(heads | conditional_parameters(model).keys())


def _role(name: str, routed: list[int], *, decay: bool) -> Role:
    if match := _LAYER.search(name):
        return Role("gate" if match[2] == "gate" else "pool", decay, routed.index(int(match[1])))
    return Role("head" if "heads" in name.split(".") else "dense", decay, None)


def _norm_parameters(model: nn.Module) -> set[str]:
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.RMSNorm)
        for name, _ in module.named_parameters(recurse=False)
    }


def _is_bias(name: str) -> bool:
    """By name, not by number of axes: stacked biases of pools and heads are matrices.

    A gate's ``norm_...`` tensors are a LayerNorm's, its ``logits_...`` a bias per task.
    """
    leaf = name.rsplit(".", 1)[-1]
    return leaf == "bias" or leaf.startswith(("b_", "bias_", "norm_", "logits_"))
