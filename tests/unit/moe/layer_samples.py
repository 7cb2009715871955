"""A routed layer with random weights, random tokens, and what it should compute, in plain loops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distmoe.moe.build import build_routed_feed_forward
from distmoe.moe.config import GateConfig, MoEConfig
from distmoe.moe.layer import RoutedFeedForward
from distmoe.moe.routing import TokenContext
from distmoe.parallel.process_groups import LayerHosting
from distmoe.tasks import TaskSet, TaskSpec

D, F = 8, 16
WHOLE = ((0, 1, 2),)
TWO_TASK_GROUPS = ((0, 2), (1,))


def task_set(num_tasks: int = 3) -> TaskSet:
    return TaskSet(
        tuple(
            TaskSpec(name=f"t{i}", kind="classification", metric="accuracy", labels=("a", "b"))
            for i in range(num_tasks)
        )
    )


def hosting_alone(num_task_groups: int) -> LayerHosting:
    return LayerHosting(tuple(range(num_task_groups)), 0, 1, None)


def make_layer(
    *,
    partition: tuple[tuple[int, ...], ...] = WHOLE,
    hosting: LayerHosting | None = None,
    dtype: torch.dtype = torch.float64,
    gate: str = "token",
    activation_checkpointing: bool = False,
    **options: object,
) -> RoutedFeedForward:
    """A layer whose weights depend on names alone, not on ranks."""
    values = {"num_experts": 4, "top_k": 2, "combine": "renorm", "expert_size": F} | options
    layer = build_routed_feed_forward(
        MoEConfig(gate=GateConfig(kind=gate, init_std=1.0), **values),
        layer_index=1,
        routed_index=0,
        hidden_size=D,
        intermediate_size=F,
        activation="gelu",
        tasks=task_set(),
        partition=partition,
        hosting=hosting or hosting_alone(len(partition)),
        activation_checkpointing=activation_checkpointing,
    )
    layer.gate.reset(5, "gate")
    for name, pool in layer.pools.items():
        pool.reset(5, name, 0.5)
        # Biases that differ between experts, equal on all ranks: a forgotten one shows.
        for key in ("b_in", "b_out"):
            numbers = torch.arange(pool.first_expert, pool.first_expert + pool.num_local) + ord(name[1])
            nn.init.zeros_(pool.get_parameter(key)).data.add_(numbers.float().sin()[:, None])
    if layer.shared_mlp is not None:
        layer.shared_mlp.reset(5, "shared_mlp", 0.5)
    return layer.to(dtype)


def make_tokens(num_tokens: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, TokenContext]:
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(num_tokens, D, generator=generator, dtype=dtype)
    tasks = torch.randint(3, (num_tokens,), generator=generator)
    return x_TD, TokenContext(tasks, torch.arange(num_tokens), num_tokens)


def oracle(layer: RoutedFeedForward, x_TD: Tensor, experts: Sequence[Sequence[int]], weights_TK: Tensor) -> Tensor:
    """Token by token, choice by choice; a negative expert adds nothing. Only for a layer with all experts."""
    table = [(pool, local) for pool in layer.pools.values() for local in range(pool.num_local)]
    rows = []
    for token, chosen in enumerate(experts):
        y_D = torch.zeros(D, dtype=x_TD.dtype)
        for choice, expert in enumerate(chosen):
            if expert < 0:
                continue
            pool, local = table[expert]
            hidden = nn.functional.gelu(pool.w_in[local] @ x_TD[token] + pool.b_in[local])
            y_D = y_D + weights_TK[token, choice] * (pool.w_out[local] @ hidden + pool.b_out[local])
        rows.append(y_D)
    return torch.stack(rows) if rows else x_TD * 0
