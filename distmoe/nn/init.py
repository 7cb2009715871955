"""Initialisation from named streams: a tensor's values depend on the run's seed and its own name, on nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from distmoe.seed import generator


@torch.no_grad()
def init_normal_(tensor: Tensor, *, seed: int, name: str, std: float, index: int | None = None) -> Tensor:
    """Fills ``tensor`` with N(0, std^2), in place.

    The numbers are drawn in float32 on the CPU and then copied: they are the same on every rank, device and dtype.

    Args:
        tensor: Any shape; for one expert of a stacked tensor, the slice of that expert.
        seed: Seed of the run.
        name: Full dotted name of the parameter.
        std: Standard deviation; 0.02 is BERT's.
        index: Global index of the expert, for a slice of a stacked tensor.
    """
    keys = (name,) if index is None else (name, index)
    values = torch.empty(tensor.shape, dtype=torch.float32)
    values.normal_(0.0, std, generator=generator(seed, "init", *keys))
    return tensor.copy_(values)
