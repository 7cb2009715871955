"""Knowledge amalgamation: a fresh layer learns to reproduce the layers that it replaces (mode ``paper``).

``L = sum over members k of mean (F_k - c_k * F)^2`` (arXiv 2305.00441, specification section 2.4), where F is the new
layer's output, F_k the member's on the same input, and c_k a gate in (0, 1) per channel, made from F. The gates belong
to the loss: they are thrown away with it, which costs a jump of the training loss that ``none`` avoids.

Shape letters: B sequences, S positions, D model width, A hidden width of a gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmoe.nn.init import init_normal_
from distmoe.structure.features import token_means

Gates = Literal["dropped", "none"]


class ChannelGate(nn.Module):
    """``sigmoid(W2 relu(W1 mean(F) + b1) + b2)``: which channels of the new layer a member recognises as its own."""

    def __init__(self, hidden_size: int, gate_size: int) -> None:
        super().__init__()
        self.w_in = nn.Parameter(torch.empty(gate_size, hidden_size))
        self.b_in = nn.Parameter(torch.empty(gate_size))
        self.w_out = nn.Parameter(torch.empty(hidden_size, gate_size))
        self.b_out = nn.Parameter(torch.empty(hidden_size))

    def reset(self, seed: int, name: str) -> None:
        """Fresh weights from named streams, ``N(0, 1 / inputs)``; biases zero: gates start around one half."""
        for key in ("w_in", "w_out"):
            weight = getattr(self, key)
            init_normal_(weight, seed=seed, name=f"{name}.{key}", std=weight.shape[1] ** -0.5)
        nn.init.zeros_(self.b_in)
        nn.init.zeros_(self.b_out)

    def forward(self, hidden_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """Returns ``[B, 1, D]`` in (0, 1)."""
        pooled_BD = token_means(hidden_BSD, mask_BS)
        gate_BA = F.relu(F.linear(pooled_BD, self.w_in, self.b_in))
        return torch.sigmoid(F.linear(gate_BA, self.w_out, self.b_out)).unsqueeze(1)


class AmalgamationLoss(nn.Module):
    """Loss of one new layer against the members that it replaces. Train it together with the new layer only.

    Args:
        num_members: Layers that are replaced.
        hidden_size: D.
        gates: ``dropped``: as published. ``none``: the new layer imitates the members directly, so their mean is the
            best it can do, and training goes on without a jump.
        gate_size: Hidden width of the gates; None: a quarter of D.
    """

    def __init__(self, num_members: int, hidden_size: int, *, gates: Gates, gate_size: int | None = None) -> None:
        super().__init__()
        width = max(hidden_size // 4, 1) if gate_size is None else gate_size
        self.num_members = num_members
        self.gates: nn.ModuleList | None = None
        if gates == "dropped":
            self.gates = nn.ModuleList(ChannelGate(hidden_size, width) for _ in range(num_members))

    def reset(self, seed: int, name: str) -> None:
        """Fresh gates; each has its own stream."""
        for index, gate in enumerate(self.gates or ()):
            assert isinstance(gate, ChannelGate)
            gate.reset(seed, f"{name}.gates.{index}")

    def forward(self, student_BSD: Tensor, teachers_BSD: Sequence[Tensor], mask_BS: Tensor) -> Tensor:
        """Sum over members of the mean squared error over channels of real tokens: a float32 scalar.

        Args:
            student_BSD: Output of the new layer.
            teachers_BSD: Output of each member on the same input; no gradient reaches them.
            mask_BS: True at real tokens.
        """
        assert len(teachers_BSD) == self.num_members, "one teacher per member"
        student_BSD = student_BSD.float()
        total = student_BSD.new_zeros(())
        for index, teacher_BSD in enumerate(teachers_BSD):
            gate: Tensor | float = 1.0 if self.gates is None else self.gates[index](student_BSD, mask_BS)
            total = total + masked_mse(student_BSD * gate, teacher_BSD.detach().float(), mask_BS)
        return total


def masked_mse(x_BSD: Tensor, y_BSD: Tensor, mask_BS: Tensor) -> Tensor:
    """Mean squared difference over all channels of real tokens; 0 if there is none."""
    mask_BS = mask_BS.bool()
    # Masked before squaring: the gradient of a masked square is 0 times the padding, and that may not be finite.
    difference_BSD = (x_BSD - y_BSD).masked_fill(~mask_BS.unsqueeze(-1), 0.0)
    return difference_BSD.square().mean(dim=-1).sum() / mask_BS.sum().clamp_min(1)
