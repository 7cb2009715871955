"""What a gate decides, as one frozen value, and what it must know about the tokens it decides for.

Shape letters: T tokens (padding removed), E experts of the layer over all task groups, K experts per token,
B sequences, G task groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True)
class TokenContext:
    """Facts about the real tokens of a batch, equal for every layer.

    Attributes:
        task_ids_T: Task of each token, int64.
        sequence_ids_T: Row of the batch that each token comes from, int64, ascending.
        num_sequences: Rows of the batch, B.
    """

    task_ids_T: Tensor
    sequence_ids_T: Tensor
    num_sequences: int

    @cached_property
    def tasks_of_sequences(self) -> tuple[int | None, ...]:
        """Task of each sequence, on the host; None for one without tokens. One synchronisation per batch."""
        tasks_B = self.task_ids_T.new_full((self.num_sequences,), -1).scatter(0, self.sequence_ids_T, self.task_ids_T)
        return tuple(None if task < 0 else task for task in tasks_B.tolist())


@dataclass(frozen=True)
class Routing:
    """Where each token goes and with which weight.

    Attributes:
        expert_ids_TK: Chosen experts, int64 in [0, E); always inside the task's own task group.
        weights_TK: Combine weights, float32, differentiable.
        probs_TE: Softmax over the experts that the token's task may choose, float32, differentiable; exactly 0
            for experts of other task groups. Auxiliary losses and statistics read it.
        logits_TE: Gate logits before the softmax, float32; -inf outside the task group.
        dropped: Rows that found their expert full, int64 scalar on the tokens' device; the layer fills it in, and
            only when there is a capacity.
    """

    expert_ids_TK: Tensor
    weights_TK: Tensor
    probs_TE: Tensor
    logits_TE: Tensor
    dropped: Tensor | None = None
