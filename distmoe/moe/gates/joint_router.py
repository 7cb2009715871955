"""The router that reads a token's state and its task's vector together.

Shape letters: T tokens, D model width, E experts, M tasks, U width of a task vector, H hidden width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from distmoe.moe.gates.base import take_rows
from distmoe.moe.gates.declared import DeclaredModule


class JointRouter(DeclaredModule):
    """``R([h ; tau_t])``: an MLP ``gelu(. W1^T + b1) W2^T + b2``, or one linear map.

    The first map is applied to the two halves apart: ``W1 [h ; tau] = W1_h h + W1_tau tau``. The task half is computed
    once per task instead of once per token, and the concatenation never exists.

    NOTE: the linear router is only a bias per task, ``W_h h + b_t``: no task can rank tokens differently from
    another. That is why the MLP is the default.

    Args:
        kind: ``mlp`` or ``linear``.
        hidden_size: D.
        vector_size: U.
        router_size: H, of the MLP only.
        num_experts: E.
        router_std: Standard deviation of the map that makes the logits.
    """

    def __init__(
        self,
        *,
        kind: Literal["mlp", "linear"],
        hidden_size: int,
        vector_size: int,
        router_size: int,
        num_experts: int,
        router_std: float,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.hidden_size = hidden_size
        joint = hidden_size + vector_size
        if kind == "linear":
            self.weight = self.declare("weight", num_experts, joint, std=router_std)
            return
        self.weight = self.declare("weight", router_size, joint, std=joint**-0.5)
        self.bias_H = self.declare("bias_H", router_size)
        self.w_out_EH = self.declare("w_out_EH", num_experts, router_size, std=router_std)
        self.b_out_E = self.declare("b_out_E", num_experts)

    def forward(self, x_TD: Tensor, tau_MU: Tensor, task_ids_T: Tensor) -> Tensor:
        """Logits [T, E] in the dtype of ``x_TD``."""
        weight = self.weight.to(x_TD.dtype)
        of_task = F.linear(tau_MU, weight[:, self.hidden_size :])
        joint = F.linear(x_TD, weight[:, : self.hidden_size]) + take_rows(of_task, task_ids_T)
        if self.kind == "linear":
            return joint
        hidden_TH = F.gelu(joint + self.bias_H.to(x_TD.dtype))
        return F.linear(hidden_TH, self.w_out_EH.to(x_TD.dtype), self.b_out_E.to(x_TD.dtype))
