"""What ``moe_layer.py`` measures: shapes, weights, the dense floor and distmoe's layer; others are in ``moe_peers.py``.

An *arm* is a function of token states that gives outputs, and the parameters whose gradients it fills. Experts are
SwiGLU; the router is softmax, top-k, renormalised (Mixtral's), and decides identically everywhere.

Shape letters: T tokens, D model width, F expert width, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmoe.moe.build import build_routed_feed_forward
from distmoe.moe.config import GateConfig, MoEConfig
from distmoe.moe.experts import Kernel
from distmoe.moe.routing import TokenContext
from distmoe.parallel.process_groups import LayerHosting
from distmoe.tasks import TaskSet, TaskSpec


@dataclass(frozen=True)
class Shape:
    """Size of one routed layer and its load."""

    tokens: int
    width: int
    expert_width: int
    experts: int
    top_k: int
    skew: float | None

    def __str__(self) -> str:
        load = "balanced" if self.skew is None else f"skew {self.skew}"
        return f"T={self.tokens} d={self.width} f={self.expert_width} E={self.experts} K={self.top_k} {load}"


@dataclass(frozen=True)
class Weights:
    """What all arms share: router ``[E, D]``, packed gate and up ``[E, 2F, D]``, down ``[E, D, F]``."""

    router_ED: Tensor
    w_in: Tensor
    w_out: Tensor


@dataclass(frozen=True)
class Arm:
    """One implementation.

    Attributes:
        name: Row of the table.
        forward: ``[T, D] -> [T, D]``; the dense floor takes ``[T K, D]``.
        parameters: Whose gradients are dropped between repeats.
        exact: Whether it must compute what distmoe computes; an arm that drops rows need not.
        rows: Whether it takes T K rows instead of T tokens.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    parameters: list[nn.Parameter]
    exact: bool = True
    rows: bool = False


def dense_floor(shape: Shape, weights: Weights) -> Arm:
    """One dense SwiGLU on T K rows: the same FLOPs without any routing."""
    w_in, w_out = nn.Parameter(weights.w_in[0].clone()), nn.Parameter(weights.w_out[0].clone())

    def forward(x: Tensor) -> Tensor:
        gate, up = F.linear(x, w_in).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, w_out)

    return Arm("dense floor", forward, [w_in, w_out], exact=False, rows=True)


def distmoe(shape: Shape, weights: Weights, kernel: Kernel) -> Arm:
    """distmoe's routed layer on one rank."""
    layer = build_routed_feed_forward(
        MoEConfig(
            num_experts=shape.experts,
            top_k=shape.top_k,
            expert_size=shape.expert_width,
            combine="renorm",
            gate=GateConfig(kind="token"),
            kernel=kernel,
        ),
        layer_index=0,
        routed_index=0,
        hidden_size=shape.width,
        intermediate_size=shape.expert_width * shape.top_k,
        activation="swiglu",
        tasks=TaskSet((TaskSpec(name="only", kind="regression", metric="pearson"),)),
        partition=((0,),),
        hosting=LayerHosting((0,), 0, 1, None),
        activation_checkpointing=False,
    ).to(weights.w_in.device, weights.w_in.dtype)
    copy_weights(layer.get_parameter("gate.weight_ED"), weights.router_ED)
    copy_weights(layer.get_parameter("pools.g0.w_in"), weights.w_in)
    copy_weights(layer.get_parameter("pools.g0.w_out"), weights.w_out)
    zeros = torch.zeros(shape.tokens, dtype=torch.int64, device=weights.w_in.device)
    context = TokenContext(zeros, zeros, 1)
    return Arm(f"distmoe {kernel}", lambda x: layer(x, context)[0], list(layer.parameters()))


def make_weights(shape: Shape, dtype: torch.dtype, device: torch.device) -> Weights:
    """Random weights and a router that gives the asked load for :func:`make_tokens`."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, std: float) -> Tensor:
        return torch.randn(*size, generator=generator) * std

    router_ED = normal(shape.experts, shape.width, std=shape.width**-0.5)
    # The first column of the tokens is constant 1: the first column of the router is a bias.
    router_ED[:, 0] = 0
    if shape.skew is not None:
        _skew(router_ED, shape)
    w_in = normal(shape.experts, 2 * shape.expert_width, shape.width, std=shape.width**-0.5)
    w_out = normal(shape.experts, shape.width, shape.expert_width, std=shape.expert_width**-0.5)
    return Weights(*(tensor.to(device, dtype) for tensor in (router_ED, w_in, w_out)))


def make_tokens(shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal token states with a constant first column."""
    x_TD = torch.randn(shape.tokens, shape.width, generator=torch.Generator().manual_seed(1))
    x_TD[:, 0] = 1
    return x_TD.to(device, dtype)


def load_skew(router_ED: Tensor, shape: Shape) -> float:
    """Largest expert load over the mean."""
    logits_TE = F.linear(make_tokens(shape, torch.float32, torch.device("cpu")), router_ED.float().cpu())
    load_E = torch.bincount(logits_TE.topk(shape.top_k).indices.flatten(), minlength=shape.experts)
    return (load_E.max() / load_E.double().mean()).item()


def _skew(router_ED: Tensor, shape: Shape) -> None:
    """Bisects the size of a linear bias until the load has the asked skew."""
    assert shape.skew is not None
    bias_E = torch.linspace(-1, 1, shape.experts)
    low, high = 0.0, 8.0
    for _ in range(30):
        middle = (low + high) / 2
        router_ED[:, 0] = bias_E * middle
        low, high = (middle, high) if load_skew(router_ED, shape) < shape.skew else (low, middle)


def copy_weights(parameter: Tensor, values: Tensor) -> None:
    """Overwrites a parameter."""
    with torch.no_grad():
        parameter.copy_(values)
