"""The value that travels from the loader to the model: one padded mini-batch of mixed tasks.

Shape letters: B sequences, S positions, T real (non-padding) tokens, L positions with a label, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

NO_LOSS = -100
"""Label of a position that no token is to be predicted from."""


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
        trunk_BSD: States behind the encoder's frozen trunk, where they are known: the encoder then starts there. Zero
            or anything finite at padding.
        labels_BS: For tasks whose answers are tokens: the token to be predicted *from* each position (already
            shifted), int64, -100 where there is no loss. ``labels_B`` is not read then. None: no such task.
        target_index_L: Flat positions of real tokens that have a label in ``labels_BS``, ascending, int64, built on the
            host like ``token_index_T``. The model answers at these only. None: it answers at every real token.
        position_ids_BS: Position of each token in its document, int64; begins again at 0 with every document that is
            packed into a row. None: positions count from the row's start.
        segment_ids_BS: Number of the document in its row, from 0, int64; a token attends only to tokens of its own
            document. None: one document per row.
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
    trunk_BSD: Tensor | None = None
    labels_BS: Tensor | None = None
    target_index_L: Tensor | None = None
    position_ids_BS: Tensor | None = None
    segment_ids_BS: Tensor | None = None

    def to(self, device: torch.device | str) -> TaskBatch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> TaskBatch:
        """Returns the batch in page-locked memory, for copies to a GPU that overlap with compute."""
        return self.map(Tensor.pin_memory)

    def map(self, function: Callable[[Tensor], Tensor]) -> TaskBatch:
        """The batch with a function applied to each of its tensors."""
        return replace(self, **{name: function(tensor) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that this batch has, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def num_examples(self) -> int:
        """Real examples (host value only if the batch is on the CPU)."""
        return int(self.example_mask_B.sum())
