"""Task vectors tau: what task-aware gates know about a task besides its number.

Shape letters: M tasks, V width of a task's frozen features, H hidden width, U width of a task vector.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distmoe.moe.gates.declared import DeclaredModule


class TaskVectors(DeclaredModule):
    """``tau_t = LN(MLP(v_t))``, one vector per task; v_t is one-hot, or a frozen encoding of the task's description.

    The MLP on one-hot tasks is M3ViT's. The layer norm keeps tau comparable with a layer-normed token state
    whatever the features' scale; without it a router that reads both ignores the small one. Each routed layer has its
    own task vectors, so that layers can be re-grouped and exported one by one.

    Args:
        num_tasks: M.
        hidden_size: H.
        vector_size: U.
        features_MV: Frozen features, or None for one-hot.
    """

    def __init__(
        self, *, num_tasks: int, hidden_size: int, vector_size: int, features_MV: Tensor | None = None
    ) -> None:
        super().__init__()
        if features_MV is not None:
            # Values that bfloat16 holds exactly: engines cast buffers with the module, and a restored or exported
            # gate must read what the trained one read.
            features_MV = features_MV.detach().to(torch.bfloat16).to(torch.float32)
        self.features_MV: Tensor | None
        self.register_buffer("features_MV", features_MV)
        width = num_tasks if features_MV is None else features_MV.shape[1]
        # One-hot input and unit-length features both have norm 1, so unit variance keeps the hidden layer near 1.
        self.w_in_HV = self.declare("w_in_HV", hidden_size, width, std=1.0, per_task=features_MV is None)
        self.b_in_H = self.declare("b_in_H", hidden_size)
        self.w_out_UH = self.declare("w_out_UH", vector_size, hidden_size, std=hidden_size**-0.5)
        self.b_out_U = self.declare("b_out_U", vector_size)
        self.norm_weight_U = self.declare("norm_weight_U", vector_size, mean=1.0)
        self.norm_bias_U = self.declare("norm_bias_U", vector_size)

    def forward(self, dtype: torch.dtype) -> Tensor:
        """All tasks' vectors [M, U], absent tasks included: their gradients are zero, not missing."""
        w_in_HV, b_in_H, w_out_UH, b_out_U, norm_weight_U, norm_bias_U = (
            parameter.to(dtype)
            for parameter in (
                self.w_in_HV, self.b_in_H, self.w_out_UH, self.b_out_U, self.norm_weight_U, self.norm_bias_U
            )
        )  # fmt: skip
        if self.features_MV is None:
            hidden_MH = w_in_HV.t() + b_in_H  # the one-hot product picks columns
        else:
            hidden_MH = F.linear(self.features_MV.to(dtype), w_in_HV, b_in_H)
        tau_MU = F.linear(F.gelu(hidden_MH), w_out_UH, b_out_U)
        return F.layer_norm(tau_MU, (tau_MU.shape[1],), norm_weight_U, norm_bias_U)
