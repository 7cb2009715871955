"""The value that travels from the loader to the model: one padded mini-batch of mixed tasks.

Shape letters: B sequences, S positions, T real (non-padding) tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class TaskBatch:
    """Examples of several tasks, padded to the longest of them.

    A rank without examples gets one *placeholder* row (``example_mask_B`` false, one attended token, weight 0), so
    that every rank runs every module; its token is not in ``token_index_T`` and never reaches a gate or an expert.

    Attributes:
        input_ids_BS: Token ids, int64.
        attention_mask_BS: True at real tokens. Every row has at least one.
        token_type_ids_BS: Segment ids, int64.
        task_ids_B: Task of each row, int64.
        labels_B: float32; class ids are exact up to 2**24.
        loss_weights_B: float32. The rank's loss is ``sum(loss_weights_B * loss_B)``; weights are made so that the
            mean over ranks and accumulation steps is the mixture's loss (design section 3.3). 0 for placeholders.
        example_ids_B: Index of the example in its task's split, int64; -1 for placeholders.
        example_mask_B: False for placeholder rows.
        token_index_T: Flat positions ``b * S + s`` of the real tokens of real examples, ascending, int64. Built on
            the host, so that removing padding costs no device synchronisation.
    """

    input_ids_BS: Tensor
    attention_mask_BS: Tensor
    token_type_ids_BS: Tensor
    task_ids_B: Tensor
    labels_B: Tensor
    loss_weights_B: Tensor
    example_ids_B: Tensor
    example_mask_B: Tensor
    token_index_T: Tensor

    def to(self, device: torch.device | str) -> TaskBatch:
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    @property
    def num_examples(self) -> int:
        """Real examples (host value only if the batch is on the CPU)."""
        return int(self.example_mask_B.sum())
