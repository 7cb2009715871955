"""A layer that exists once per task group: attention, feed-forward part and norms of their own (unit ``block``).

Each of its *variants* is an ordinary :class:`~distmoe.models.layer.EncoderLayer`; a sequence goes through the one of
its task's group. Tasks alone decide, so nothing travels between ranks: a rank has sequences of tasks that it hosts.

Shape letters: B sequences, S positions, D model width, T real tokens, R sequences of one task group, G task groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distmoe.models.layer import EncoderLayer
from distmoe.moe.routing import Routing, TokenContext
from distmoe.nn.conditional.conditioning import Conditioning
from distmoe.parallel.traffic import TrafficCounter


class RoutedLayer(nn.Module):
    """Stands in for an encoder layer.

    Every hosted variant runs at every step, in the same order, also without a single sequence: its parameters then get
    gradients of zeros, and DeepSpeed's hooks come in one order on all ranks.

    Args:
        variants: One layer per hosted task group, by task group (``g0``), in hosting order.
        task_group_of: Task group of every task at this layer.
    """

    def __init__(self, variants: Mapping[str, EncoderLayer], *, task_group_of: Sequence[int]) -> None:
        super().__init__()
        self.variants = nn.ModuleDict(variants)
        self._task_group_of = tuple(task_group_of)
        self.traffic = TrafficCounter()  # stays at zero
        # Not persistent: it follows from the task grouping.
        self.task_group_of_M: Tensor
        self.register_buffer("task_group_of_M", torch.tensor(task_group_of), persistent=False)

    def forward(
        self,
        x_BSD: Tensor,
        mask_B11S: Tensor,
        token_index_T: Tensor,
        context: TokenContext,
        conditioning: Conditioning | None = None,
    ) -> tuple[Tensor, Routing]:
        """As an encoder layer; a sequence without tokens, which nobody reads, becomes zeros.

        Args:
            x_BSD: Hidden states.
            mask_B11S: Boolean, true at keys that may be attended.
            token_index_T: Flat positions of the real tokens; the variants are dense and do not need them.
            context: Tasks and sequences of the real tokens.
            conditioning: None: variants have no task-conditioned parts.
        """
        rows: dict[str, list[int]] = {name: [] for name in self.variants}
        for row, task in enumerate(context.tasks_of_sequences):
            if task is not None:
                rows[f"g{self._task_group_of[task]}"].append(row)
        y_BSD = torch.zeros_like(x_BSD)
        for name, variant in self.variants.items():
            rows_R = torch.tensor(rows[name], dtype=torch.int64, device=x_BSD.device)
            y_RSD, _ = variant(x_BSD.index_select(0, rows_R), mask_B11S.index_select(0, rows_R), token_index_T, context)
            y_BSD = y_BSD.index_copy(0, rows_R, y_RSD.to(y_BSD.dtype))
        return y_BSD, self._routing(context)

    def _routing(self, context: TokenContext) -> Routing:
        """Where the tokens went, as if variants were experts: one of each task group, with weight 1."""
        chosen_T1 = self.task_group_of_M[context.task_ids_T].unsqueeze(1)
        num_task_groups = max(self._task_group_of) + 1
        probs_TG = torch.zeros(len(chosen_T1), num_task_groups, device=chosen_T1.device).scatter(1, chosen_T1, 1.0)
        return Routing(chosen_T1, torch.ones_like(chosen_T1, dtype=torch.float32), probs_TG, probs_TG.log())
