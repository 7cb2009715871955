"""Task-aware gates that begin as a trained gate `token`, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from distmoe.errors import ConfigError
from distmoe.moe.gates.base import Gate
from distmoe.moe.gates.hybrid import HybridGate
from distmoe.moe.gates.per_task import PerTaskGate
from distmoe.moe.gates.task_embedding import TaskEmbeddingGate
from distmoe.moe.gates.token import TokenGate


@torch.no_grad()
def start_as_token(gate: Gate, weight_ED: Tensor) -> None:
    """Copies a token router into ``gate`` so that both give equal logits until the next training step.

    ``per_task`` gets one copy per task, linear ``task_embedding`` and ``task_description`` zero weights for the
    task part (both as in M3ViT's code), ``hybrid`` zero task terms.

    Args:
        gate: The gate to fill.
        weight_ED: ``weight_ED`` of a :class:`TokenGate` with as many experts and the same width.

    Raises:
        ConfigError: If the gate has no such state: an MLP router, or a gate that reads no single token.
    """
    assert weight_ED.shape == (gate.num_experts, gate.hidden_size), "router of another layer shape"
    match gate:
        case TokenGate():
            gate.weight_ED.copy_(weight_ED)
        case PerTaskGate():
            gate.weight_MED.copy_(weight_ED.expand_as(gate.weight_MED))
        case HybridGate():
            gate.weight_ED.copy_(weight_ED)
            gate.scale_DU.zero_()
            gate.weight_EU.zero_()
        case TaskEmbeddingGate() if gate.router.kind == "linear":
            gate.router.weight.zero_()
            gate.router.weight[:, : gate.hidden_size].copy_(weight_ED)
        case _:
            raise ConfigError(
                "this gate cannot start as gate token",
                got=type(gate).__name__,
                expected="token | per_task | hybrid | task_embedding or task_description with router linear",
                remedy="choose one of these gates, or start its router from scratch",
            )
