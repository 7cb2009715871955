"""Makes the experts of a routed layer from the dense feed-forward part of a pretrained layer.

At full width every expert is a copy of the dense part, so whatever the gate chooses, the layer computes the dense
function as long as the combine weights sum to 1 (``straight_through``, ``renorm``): sparse upcycling,
task_routing.md section 4.

At a narrower width (compute-matched, ``top_k`` > 1) expert ``i`` is slice ``i mod m`` of the dense neurons, ``m`` =
dense width / expert width, with ``w_out`` times ``m``. Chosen experts are averaged (weights sum to 1), so ``m`` experts
of equal weight that cover all slices add up to the dense part exactly. A gate that chooses otherwise, or weighs
unequally, starts from an approximation: exactness at step 0 holds at full width only.

Gated parts (SwiGLU) have no biases, and ``w_in`` packs the gate before the other factor; a slice takes the same rows
of both.

Shape letters: F dense width, f expert width, D model width, H = F or, gated, 2F.
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
    """The tensors of a feed-forward part: ``[H, D]``, ``[H]``, ``[D, F]``, ``[D]``; gated, without biases."""

    w_in: Tensor
    b_in: Tensor | None
    w_out: Tensor
    b_out: Tensor | None

    @property
    def gated(self) -> bool:
        return self.b_in is None

    def present(self) -> dict[str, Tensor]:
        """The tensors that there are, by name."""
        return {part: value for part in PARTS if (value := getattr(self, part)) is not None}


def expert_from_dense(dense: FeedForwardWeights, *, expert: int, width: int) -> FeedForwardWeights:
    """Returns the noise-free weights of one expert.

    Args:
        dense: Weights of the dense part, width F.
        expert: Index of the expert in its task group.
        width: f; divides F.

    Raises:
        ConfigError: If ``width`` does not divide F.
    """
    dense_width = dense.w_out.shape[1]
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
    w_out = dense.w_out[:, rows] * num_slices
    if dense.b_in is None:
        return FeedForwardWeights(torch.cat([half[rows] for half in dense.w_in.chunk(2)]), None, w_out, None)
    return FeedForwardWeights(dense.w_in[rows], dense.b_in[rows], w_out, dense.b_out)


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
        source = expert_from_dense(dense, expert=expert, width=pool.intermediate_size)
        for part, tensor in source.present().items():
            values = tensor.float()
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
    source = expert_from_dense(dense, expert=0, width=shared_mlp.w_out.shape[1])
    for part, tensor in source.present().items():
        getattr(shared_mlp, part).copy_(tensor if part.endswith("_in") else torch.zeros_like(tensor))
