"""Gate `per_task`: one token router per task."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from distmoe.moe.gates.base import Gate
from distmoe.moe.gates.declared import router_dtype
from distmoe.moe.gates.setting import GateSetting
from distmoe.moe.routing import TokenContext


class PerTaskGate(Gate):
    """``z = h W_t^T`` with W [tasks, E, D]: multi-gate mixture of experts (MMoE; M3ViT and Mod-Squad per token).

    All tasks' routers run on all tokens and one is taken. That costs tasks * E columns (12 tasks, E=8: 2 % of a
    feed-forward part of width 4 D) and is the same work on every rank; sorting tokens by task instead would need their
    numbers on the host.
    """

    def __init__(self, setting: GateSetting) -> None:
        super().__init__(setting)
        shape = (self.num_tasks, self.num_experts, self.hidden_size)
        self.weight_MED = self.declare("weight_MED", *shape, std=setting.router_std, per_task=True)

    def logits(self, x_TD: Tensor, context: TokenContext) -> Tensor:
        flat_TX = F.linear(x_TD, self.weight_MED.to(router_dtype(x_TD)).flatten(0, 1))
        all_TME = flat_TX.view(-1, self.num_tasks, self.num_experts)
        own_T1E = context.task_ids_T.view(-1, 1, 1).expand(-1, 1, self.num_experts)
        return all_TME.gather(1, own_T1E).squeeze(1)
