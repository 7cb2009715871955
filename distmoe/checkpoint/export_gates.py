"""Gates in the form in which they are exported: what a gate computes from the task alone becomes a table.

The modelling code of an export then has three small forms (`table`, `linear`, `mlp`) instead of every kind of gate,
and needs neither task MLPs nor encodings of descriptions. Logits are those of the gate; see ``docs/export.md``.

Shape letters: M tasks, D model width, E experts, H hidden width of a router.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distmoe.moe.gates.base import Gate
from distmoe.moe.gates.fixed import FixedGate
from distmoe.moe.gates.hybrid import HybridGate
from distmoe.moe.gates.per_task import PerTaskGate
from distmoe.moe.gates.sequence import SequenceGate
from distmoe.moe.gates.task import TaskGate
from distmoe.moe.gates.task_embedding import TaskEmbeddingGate
from distmoe.moe.gates.token import TokenGate
from distmoe.moe.routing import TokenContext


@torch.no_grad()
def exported_gate(gate: Gate, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns a gate's entry in the exported configuration, and its tensors.

    Args:
        gate: Of a whole model, float32.
        kind: Its name in the configuration (``model.moe.gate.kind``).
    """
    entry: dict[str, Any] = {"kind": kind, "granularity": gate.granularity}
    match gate:
        case TaskGate() | FixedGate():
            return entry | {"form": "table"}, {"table_ME": _logits_by_task(gate)}
        case TokenGate():
            return entry | {"form": "linear"}, {"weight_ED": gate.weight_ED}
        case PerTaskGate():
            return entry | {"form": "linear", "per_task": True}, {"weight_MED": gate.weight_MED}
        case SequenceGate():
            bias_ME = F.linear(gate.task_vectors(torch.float32), gate.weight_EU)
            return entry | {"form": "linear", "biased": True}, {"weight_ED": gate.weight_ED, "bias_ME": bias_ME}
        case HybridGate():
            tau_MU = gate.task_vectors(torch.float32)
            tensors = {
                "weight_ED": gate.weight_ED,
                "scale_MD": 1 + F.linear(tau_MU, gate.scale_DU),
                "bias_ME": F.linear(tau_MU, gate.weight_EU),
            }
            return entry | {"form": "linear", "scaled": True, "biased": True}, tensors
        case TaskEmbeddingGate():
            return _joint_router(gate, entry)
    raise AssertionError(f"no exported form for {type(gate).__name__}; add one here and in checkpoint/hf")


def _logits_by_task(gate: Gate) -> Tensor:
    tasks_M = torch.arange(gate.num_tasks)
    return gate.logits(torch.zeros(gate.num_tasks, gate.hidden_size), TokenContext(tasks_M, tasks_M, gate.num_tasks))


def _joint_router(gate: TaskEmbeddingGate, entry: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    router = gate.router
    of_token, of_vector = router.weight.split([gate.hidden_size, router.weight.shape[1] - gate.hidden_size], dim=1)
    of_task = F.linear(gate.task_vectors(torch.float32), of_vector)
    if router.kind == "linear":
        return entry | {"form": "linear", "biased": True}, {"weight_ED": of_token, "bias_ME": of_task}
    tensors = {
        "weight_HD": of_token,
        "of_task_MH": of_task,
        "bias_H": router.bias_H,
        "w_out_EH": router.w_out_EH,
        "b_out_E": router.b_out_E,
    }
    return entry | {"form": "mlp", "router_size": of_token.shape[0]}, tensors
