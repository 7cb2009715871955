"""Gate `hybrid`: a token router whose input each task rescales, plus a bias per task.

Shape letters: T tokens, D model width, E experts, M tasks, U width of a task vector.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from distmoe.moe.gates.base import Gate, take_rows
from distmoe.moe.gates.declared import router_dtype
from distmoe.moe.gates.setting import GateSetting
from distmoe.moe.gates.task_vectors import TaskVectors
from distmoe.moe.routing import TokenContext


class HybridGate(Gate):
    """``z = (gamma(tau_t) * h) W^T + tau_t V^T`` with ``gamma(tau) = 1 + tau G^T``.

    G and V start at 0, so it starts as gate `token` (gamma 1, no bias). It contains `token` (G = V = 0) and `task`
    (W = 0) and lets tasks rank tokens differently, which a bias cannot. A choice of distmoe, not of a paper.

    Args:
        setting: What does not depend on the kind of gate.
        vector_size: Width of tau.
        hidden_size: Hidden width of the task MLP.
    """

    def __init__(self, setting: GateSetting, *, vector_size: int, hidden_size: int) -> None:
        super().__init__(setting)
        self.task_vectors = TaskVectors(num_tasks=self.num_tasks, hidden_size=hidden_size, vector_size=vector_size)
        self.weight_ED = self.declare("weight_ED", self.num_experts, self.hidden_size, std=setting.router_std)
        self.scale_DU = self.declare("scale_DU", self.hidden_size, vector_size)
        self.weight_EU = self.declare("weight_EU", self.num_experts, vector_size)

    def logits(self, x_TD: Tensor, context: TokenContext) -> Tensor:
        dtype = router_dtype(x_TD)
        tau_MU = self.task_vectors(dtype)
        gamma_MD = 1 + F.linear(tau_MU, self.scale_DU.to(dtype))
        of_task_ME = F.linear(tau_MU, self.weight_EU.to(dtype))
        scaled_TD = x_TD * take_rows(gamma_MD, context.task_ids_T)
        return F.linear(scaled_TD, self.weight_ED.to(dtype)) + take_rows(of_task_ME, context.task_ids_T)
