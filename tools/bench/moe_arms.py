"""The implementations that ``moe_layer.py`` compares, all with the same weights and the same router.

An *arm* is a function of token states that gives outputs, and the parameters whose gradients it fills. Experts are
SwiGLU; the router is softmax, top-k, renormalised (Mixtral's), and decides identically everywhere.

Shape letters: T tokens, D model width, F expert width, E experts, K experts per token.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

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


class NotRunnableError(Exception):
    """Why an arm is left out."""


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
    _copy(layer.get_parameter("gate.weight_ED"), weights.router_ED)
    _copy(layer.get_parameter("pools.g0.w_in"), weights.w_in)
    _copy(layer.get_parameter("pools.g0.w_out"), weights.w_out)
    zeros = torch.zeros(shape.tokens, dtype=torch.int64, device=weights.w_in.device)
    context = TokenContext(zeros, zeros, 1)
    return Arm(f"distmoe {kernel}", lambda x: layer(x, context)[0], list(layer.parameters()))


def transformers_mixtral(shape: Shape, weights: Weights, implementation: str) -> Arm:
    """The sparse block of transformers' Mixtral."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=shape.width,
        intermediate_size=shape.expert_width,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        router_jitter_noise=0.0,
    )
    config._experts_implementation = implementation
    block = MixtralSparseMoeBlock(config).to(weights.w_in.device, weights.w_in.dtype)
    _copy(block.gate.weight, weights.router_ED)
    _copy(block.experts.gate_up_proj, weights.w_in)
    _copy(block.experts.down_proj, weights.w_out)
    return Arm(f"transformers {implementation}", lambda x: block(x[None])[0], list(block.parameters()))


class _SwiGLU(nn.Module):
    def __init__(self, w_in: Tensor, w_out: Tensor) -> None:
        super().__init__()
        self.w_in, self.w_out = nn.Parameter(w_in.clone()), nn.Parameter(w_out.clone())

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, self.w_in).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.w_out)


def deepspeed_moe(shape: Shape, weights: Weights, capacity_factor: float | None) -> Arm:
    """DeepSpeed's own MoE layer on one rank; ``capacity_factor`` None: ``drop_tokens=False``."""
    if find_spec("deepspeed") is None:
        raise NotRunnableError("deepspeed is not installed")
    from deepspeed.moe.experts import Experts
    from deepspeed.moe.sharded_moe import MOELayer, TopKGate

    gate = TopKGate(
        shape.width,
        shape.experts,
        k=shape.top_k,
        capacity_factor=capacity_factor or 1.0,
        min_capacity=4,
        drop_tokens=capacity_factor is not None,
        use_rts=False,
        top2_2nd_expert_sampling=False,
    )
    experts = Experts(nn.Identity(), shape.experts)
    experts.deepspeed_experts = nn.ModuleList(
        _SwiGLU(w_in, w_out) for w_in, w_out in zip(weights.w_in, weights.w_out, strict=True)
    )
    layer = MOELayer(gate, experts, "bench", 1, shape.experts).to(weights.w_in.device, weights.w_in.dtype)
    _copy(gate.wg.weight, weights.router_ED)
    name = "DeepSpeed MoE dropless" if capacity_factor is None else f"DeepSpeed MoE cf {capacity_factor}"
    return Arm(name, lambda x: layer(x, None), list(layer.parameters()), exact=capacity_factor is None)


def deepspeed_autoep(shape: Shape, weights: Weights) -> Arm:
    """DeepSpeed AutoEP replaces layers of known Hugging Face models."""
    if find_spec("deepspeed") is None:
        raise NotRunnableError("deepspeed is not installed")
    raise NotRunnableError("its presets for Hugging Face models stop with a TypeError (0.19.8 with transformers 5.23)")


def megatron_core(shape: Shape, weights: Weights) -> Arm:
    """megatron-core's MoELayer."""
    if find_spec("megatron") is None:
        raise NotRunnableError("megatron-core is not installed")
    if not torch.cuda.is_available():
        raise NotRunnableError("megatron-core's MoELayer asks for CUDA streams")
    raise NotRunnableError("no adapter for this version of megatron-core")


def all_arms(shape: Shape, weights: Weights) -> tuple[list[Arm], dict[str, str]]:
    """Every arm that runs here, the dense floor first, and why the others do not."""
    builders: dict[str, Callable[[], Arm]] = {
        "dense floor": lambda: dense_floor(shape, weights),
        "distmoe grouped_mm": lambda: distmoe(shape, weights, "grouped_mm"),
        "distmoe loop": lambda: distmoe(shape, weights, "loop"),
        "distmoe auto": lambda: distmoe(shape, weights, "auto"),
        "transformers grouped_mm": lambda: transformers_mixtral(shape, weights, "grouped_mm"),
        "transformers eager": lambda: transformers_mixtral(shape, weights, "eager"),
        "DeepSpeed MoE dropless": lambda: deepspeed_moe(shape, weights, None),
        "DeepSpeed MoE cf 1.25": lambda: deepspeed_moe(shape, weights, 1.25),
        "DeepSpeed AutoEP": lambda: deepspeed_autoep(shape, weights),
        "megatron-core": lambda: megatron_core(shape, weights),
    }
    arms, left_out = [], {}
    for name, builder in builders.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                arms.append(builder())
        except NotRunnableError as reason:
            left_out[name] = str(reason)
        except Exception as failure:  # a peer of another version must not end the benchmark
            left_out[name] = f"{type(failure).__name__}: {failure}"
    return arms, left_out


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


def _copy(parameter: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values)
