"""distmoe's AdamW, the same arithmetic on every device."""

from __future__ import annotations

from typing import Any

import torch

from distmoe.engine.config import OptimizerConfig


def build_optimizer(param_groups: list[dict[str, Any]], *, config: OptimizerConfig) -> torch.optim.AdamW:
    """Returns torch's fused AdamW (arXiv 1711.05101).

    It needs no compiled extension on CPU or CUDA, also on offloaded host tensors, and its weight decay is explicit:
    DeepSpeed's and torch's Adams have different silent defaults.
    """
    first, second = config.betas
    return torch.optim.AdamW(
        param_groups, lr=config.lr, betas=(first, second), eps=config.eps, weight_decay=config.weight_decay, fused=True
    )


def set_learning_rate(param_groups: list[dict[str, Any]], *, lr: float, factor: float) -> None:
    """Sets every param group's rate to ``lr * factor`` times the group's own scale."""
    for param_group in param_groups:
        param_group["lr"] = lr * factor * param_group["lr_scale"]
