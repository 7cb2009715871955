"""Makes the experts of a routed layer from the dense feed-forward part of a pretrained layer.

At full width every expert is a copy of the dense part, so whatever the gate chooses, the layer computes the dense
function as long as the combine weights sum to 1 (``straight_through``, ``renorm``): sparse upcycling,
task_routing.md section 4.

At a narrower width (compute-matched, ``top_k`` > 1) expert ``i`` is slice ``i mod m`` of the dense neurons, ``m`` =
dense width / expert width, with ``w_out`` times ``m``. Chosen experts are averaged (weights sum to 1), so ``m`` experts
of equal weight that cover all slices add up to the dense part exactly. A gate that chooses otherwise, or weighs
unequally, starts from an approximation: exactness at step 0 holds at full width only.

Shape letters: F dense width, f expert width, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distmoe.errors import ConfigError
from distmoe.moe.experts import ExpertPool
from distmoe.nn.feed_forward import FeedForward
from distmoe.seed import generator

PARTS = ("w_in", "b_in", "w_out", "b_out")


@dataclass(frozen=True)
class FeedForwardWeights:
    """The four tensors of a feed-forward part: ``[F, D]``, ``[F]``, ``[D, F]``, ``[D]``."""

    w_in: Tensor
    b_in: Tensor
    w_out: Tensor
    b_out: Tensor


def expert_from_dense(dense: FeedForwardWeights, *, expert: int, width: int) -> FeedForwardWeights:
    """Returns the noise-free weights of one expert.

    Args:
        dense: Weights of the dense part, width F.
        expert: Index of the expert in its task group.
        width: f; divides F.

    Raises:
        ConfigError: If ``width`` does not divide F.
    """
    dense_width = dense.w_in.shape[0]
    if dense_width % width:
        raise ConfigError(
            "experts of this width cannot be cut from the pretrained feed-forward part",
            got=f"expert width {width}, dense width {dense_width}",
            expected="an expert width that divides the dense width",
            remedy="change model.moe.expert_size (null: dense width / top_k) or model.moe.top_k",
        )
    num_slices = dense_width // width
    start = expert % num_slices * width
    rows = slice(start, start + width)
    return FeedForwardWeights(dense.w_in[rows], dense.b_in[rows], dense.w_out[:, rows] * num_slices, dense.b_out)


@torch.no_grad()
def upcycle_pool_(pool: ExpertPool, dense: FeedForwardWeights, *, noise: float, seed: int, name: str) -> None:
    """Overwrites the experts of a pool that live on this rank.

    Args:
        pool: Experts of one task group.
        dense: Weights of the dense part.
        noise: Standard deviation of the added Gaussian noise, relative to that of each tensor. 0 keeps all copies
            equal, and then only a gate whose experts get different tokens can tell them apart; 0.01 is usual.
        seed: Seed of the run.
        name: Full name of the pool. With the expert's index in the task group it names the noise's stream, so an
            expert is the same on whichever rank it lives.
    """
    for local in range(pool.w_in.shape[0]):
        expert = pool.first_expert + local
        source = expert_from_dense(dense, expert=expert, width=pool.w_in.shape[1])
        for part in PARTS:
            values = getattr(source, part).float()
            if noise:
                stream = generator(seed, "upcycle", f"{name}.{part}", expert)
                values = values + noise * values.std() * torch.randn(values.shape, generator=stream)
            getattr(pool, part)[local].copy_(values)


@torch.no_grad()
def upcycle_shared_(shared_mlp: FeedForward, dense: FeedForwardWeights) -> None:
    """Starts a shared expert as zero output, which keeps the pretrained function.

    Its inner weights are the dense part's (a random inner part would learn slower); the output weights are zero, and
    get gradient from the first step.
    """
    width = shared_mlp.w_in.shape[0]
    source = expert_from_dense(dense, expert=0, width=width)
    shared_mlp.w_in.copy_(source.w_in)
    shared_mlp.b_in.copy_(source.b_in)
    shared_mlp.w_out.zero_()
    shared_mlp.b_out.zero_()
