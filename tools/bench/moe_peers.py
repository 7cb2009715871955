"""Layers of other projects that ``moe_layer.py`` compares: the same weights, the same router (softmax, top-k,
renormalised), SwiGLU experts. A layer that cannot run here says why.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from moe_arms import Arm, Shape, Weights, copy_weights, dense_floor, distmoe
from torch import Tensor, nn


class NotRunnableError(Exception):
    """Why an arm is left out."""


def _mixtral_block(shape: Shape, weights: Weights, implementation: str) -> nn.Module:
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
    copy_weights(block.gate.weight, weights.router_ED)
    copy_weights(block.experts.gate_up_proj, weights.w_in)
    copy_weights(block.experts.down_proj, weights.w_out)
    return block


def transformers_mixtral(shape: Shape, weights: Weights, implementation: str) -> Arm:
    """The sparse block of transformers' Mixtral."""
    block = _mixtral_block(shape, weights, implementation)
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
    copy_weights(gate.wg.weight, weights.router_ED)
    name = "DeepSpeed MoE dropless" if capacity_factor is None else f"DeepSpeed MoE cf {capacity_factor}"
    return Arm(name, lambda x: layer(x, None), list(layer.parameters()), exact=capacity_factor is None)


def deepspeed_autoep(shape: Shape, weights: Weights, gate_up: str) -> Arm:
    """The layer that DeepSpeed's AutoEP puts in the place of Mixtral's, on one rank.

    The layer is built from its description: AutoEP's own search of Hugging Face models stops with a ``TypeError``
    in 0.19.8 under transformers 5.23.
    """
    if find_spec("deepspeed") is None:
        raise NotRunnableError("deepspeed is not installed")
    from deepspeed.module_inject.auto_ep_config import AutoEPConfig
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
    from deepspeed.module_inject.auto_ep_presets.base import MoELayerSpec

    spec = MoELayerSpec(
        moe_module_name="bench",
        model_family="mixtral",
        router_name="gate",
        experts_name="experts",
        expert_storage="fused_3d",
        expert_w1_name="gate_up_proj",
        expert_w2_name="down_proj",
        expert_w3_name=None,
        num_experts=shape.experts,
        top_k=shape.top_k,
        hidden_size=shape.width,
        ffn_hidden_size=shape.expert_width,
        score_func="softmax",
        score_apply="post",
        route_norm=True,
        gate_bias=False,
        return_router_logits=False,
        router_logits_capture_target="none",
        router_logits_capture_index=None,
        router_logits_capture_layer_name=None,
        has_shared_experts=False,
        shared_experts_name="",
    )
    config = AutoEPConfig(enabled=True, gate_up_impl=gate_up)
    layer = AutoEPMoELayer(spec, _mixtral_block(shape, weights, "grouped_mm"), 1, 0, config)
    return Arm(f"DeepSpeed AutoEP, {gate_up} w_in", lambda x: layer(x[None])[0], list(layer.parameters()))


class _HostStream:
    """Stands for a CUDA stream or event where there is none: everything already happens in order."""

    def _nothing(self, *_: object) -> _HostStream:
        return self

    wait_stream = wait_event = record_event = synchronize = _nothing


def _without_cuda() -> None:
    """Lets megatron-core's dispatcher run on a CPU: it asks for CUDA streams and leaves one name undefined."""
    from megatron.core.transformer.moe import moe_utils

    torch.cuda.Stream = torch.cuda.current_stream = lambda *_, **__: _HostStream()  # type: ignore[assignment,misc]
    torch.cuda.stream = lambda _: contextlib.nullcontext()  # type: ignore[assignment,misc,return-value]
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None


def megatron_core(shape: Shape, weights: Weights) -> Arm:
    """megatron-core's MoELayer without Transformer Engine: all-to-all dispatcher, experts one after the other."""
    if find_spec("megatron") is None:
        raise NotRunnableError("megatron-core is not installed (pip install --no-deps megatron-core==0.16.1)")
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.moe.moe_layer import MoELayer
    from megatron.core.transformer.transformer_config import TransformerConfig

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        _without_cuda()
    if not dist.is_initialized():
        store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
        dist.init_process_group("gloo" if on_cpu else "nccl", store=store, rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
    config = TransformerConfig(
        num_layers=1,
        hidden_size=shape.width,
        num_attention_heads=1,
        moe_ffn_hidden_size=shape.expert_width,
        num_moe_experts=shape.experts,
        moe_router_topk=shape.top_k,
        moe_router_load_balancing_type="none",
        moe_token_dispatcher_type="alltoall",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        bias_activation_fusion=False,
        use_cpu_initialization=on_cpu,
        params_dtype=weights.w_in.dtype,
    )
    spec = get_moe_module_spec(use_te=False, num_experts=shape.experts, moe_grouped_gemm=False)
    layer = MoELayer(config, spec.submodules, layer_number=1).to(weights.w_in.device, weights.w_in.dtype)
    copy_weights(layer.router.weight, weights.router_ED)
    for module, w_in, w_out in zip(layer.experts.local_experts, weights.w_in, weights.w_out, strict=True):
        copy_weights(module.linear_fc1.weight, w_in)
        copy_weights(module.linear_fc2.weight, w_out)
    return Arm("megatron-core", lambda x: layer(x[:, None])[0].squeeze(1), list(layer.parameters()))


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
        "DeepSpeed AutoEP": lambda: deepspeed_autoep(shape, weights, "separate"),
        "DeepSpeed AutoEP, fused": lambda: deepspeed_autoep(shape, weights, "fused"),
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
