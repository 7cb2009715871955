"""Gate `token`: each token chooses by its own state; the task is not told."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from distmoe.moe.gates.base import Gate
from distmoe.moe.gates.declared import router_dtype
from distmoe.moe.gates.setting import GateSetting
from distmoe.moe.routing import TokenContext


class TokenGate(Gate):
    """``z = h W^T`` with W [E, D]: the router of Switch Transformer (eq. 1) and V-MoE, the control of all others."""

    def __init__(self, setting: GateSetting) -> None:
        super().__init__(setting)
        self.weight_ED = self.declare("weight_ED", self.num_experts, self.hidden_size, std=setting.router_std)

    def logits(self, x_TD: Tensor, context: TokenContext) -> Tensor:
        return F.linear(x_TD, self.weight_ED.to(router_dtype(x_TD)))
