"""From token states to logits over the vocabulary: one head for all tasks, or one per task.

Shape letters: T tokens, D model width, V vocabulary, M tasks.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmoe.nn.init import init_normal_

HeadKind = Literal["tied", "shared", "per_task"]


class TokenHeads(nn.Module):
    """Linear heads without bias.

    Args:
        hidden_size: D.
        vocab_size: V.
        num_tasks: M.
        kind: ``tied``: the token table is the head, there is no parameter here; ``shared``: one head ``weight_VD``;
            ``per_task``: ``weight_MVD``, chosen by each token's task. Absent tasks get zero gradients, not none.
    """

    def __init__(self, hidden_size: int, vocab_size: int, num_tasks: int, *, kind: HeadKind) -> None:
        super().__init__()
        shared, per_task = kind == "shared", kind == "per_task"
        self.weight_VD = nn.Parameter(torch.empty(vocab_size, hidden_size)) if shared else None
        self.weight_MVD = nn.Parameter(torch.empty(num_tasks, vocab_size, hidden_size)) if per_task else None

    def reset(self, seed: int, name: str, std: float) -> None:
        """Fresh heads from the streams of their names, one per task id."""
        if self.weight_VD is not None:
            init_normal_(self.weight_VD, seed=seed, name=f"{name}.weight_VD", std=std)
        if self.weight_MVD is not None:
            for task_id, weight_VD in enumerate(self.weight_MVD):
                init_normal_(weight_VD, seed=seed, name=f"{name}.weight_MVD", index=task_id, std=std)

    def forward(self, x_TD: Tensor, task_ids_T: Tensor, table_VD: Tensor) -> Tensor:
        """Returns logits ``[T, V]``, also for T = 0.

        Args:
            x_TD: Token states.
            task_ids_T: Task of each token.
            table_VD: Token table, read by ``tied``.
        """
        if self.weight_MVD is None:
            return F.linear(x_TD, table_VD if self.weight_VD is None else self.weight_VD)
        # Sorted by task, one matmul per task, also for a task without tokens: its gradient is zero, not missing.
        order_T = task_ids_T.argsort(stable=True)
        counts = torch.bincount(task_ids_T, minlength=len(self.weight_MVD)).tolist()
        parts = zip(x_TD.index_select(0, order_T).split(counts), self.weight_MVD.unbind(0), strict=True)
        sorted_TV = torch.cat([F.linear(part_TD, weight_VD) for part_TD, weight_VD in parts])
        return torch.empty_like(sorted_TV).index_copy(0, order_T, sorted_TV)
