"""The heads of all tasks as one stacked tensor.

Shape letters: B sequences, D model width, T tasks, C outputs of the widest head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmoe.nn.init import init_normal_


class TaskHeads(nn.Module):
    """One linear head per task, padded to the widest and chosen by task id.

    Stacked, not a module per task: every rank then has the same parameters and the same gradients whichever tasks its
    batch holds (task_routing.md section 8, rules 2 and 3). Absent tasks get zero gradients, not missing ones.

    Args:
        hidden_size: D.
        num_outputs: Width of each task's head, by task id.
    """

    outside_TC: Tensor

    def __init__(self, hidden_size: int, num_outputs: Sequence[int]) -> None:
        super().__init__()
        width = max(num_outputs)
        self.weight = nn.Parameter(torch.empty(len(num_outputs), width, hidden_size))
        self.bias = nn.Parameter(torch.empty(len(num_outputs), width))
        outside_TC = torch.arange(width) >= torch.tensor(list(num_outputs)).unsqueeze(1)
        self.register_buffer("outside_TC", outside_TC, persistent=False)

    def reset(self, seed: int, name: str, std: float) -> None:
        """Fresh heads, one stream per task id; biases are zero."""
        for task_id, weight_CD in enumerate(self.weight):
            init_normal_(weight_CD, seed=seed, name=f"{name}.weight", index=task_id, std=std)
        nn.init.zeros_(self.bias)

    def forward(self, pooled_BD: Tensor, task_ids_B: Tensor) -> Tensor:
        """Returns float32 logits ``[B, C]``, -inf beyond each row's task.

        All heads are one matmul and the row's own is taken from the result: gathering the weights instead would
        write ``[B, C, D]`` and scatter its gradient.
        """
        num_tasks, width, _ = self.weight.shape
        # float32 even under bf16: a bf16 regression output has 8 bits.
        with torch.autocast(pooled_BD.device.type, enabled=False):
            flat_BN = F.linear(pooled_BD.float(), self.weight.flatten(0, 1).float(), self.bias.flatten().float())
        index_B1C = task_ids_B.view(-1, 1, 1).expand(-1, 1, width)
        logits_BC = flat_BN.view(-1, num_tasks, width).gather(1, index_B1C).squeeze(1)
        return logits_BC.masked_fill(self.outside_TC[task_ids_B], float("-inf"))
