"""The model of a run: a shared encoder, a pooler and the heads of all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from distmoe.data.batch import TaskBatch
from distmoe.models.comparison import Comparison, compared_features
from distmoe.models.encoder import Encoder
from distmoe.models.heads import TaskHeads
from distmoe.models.output import ModelOutput
from distmoe.models.pooler import Pooler
from distmoe.models.routed_positions import token_context
from distmoe.models.shape import EncoderShape


class MultiTaskEncoder(nn.Module):
    """Maps a batch of mixed tasks to the logits of each row's own task.

    Built by :func:`distmoe.models.build.build_model`. It is single-process code: what runs on which rank was decided
    when its routed layers were built.

    Args:
        encoder: Shared encoder.
        pooler: Shared pooler.
        heads: Heads of all tasks.
        dropout: Probability on the pooled state, while training.
        shape: Shape that the encoder was built with; checkpoints and exports record it.
    """

    def __init__(
        self, encoder: Encoder, pooler: Pooler, heads: TaskHeads, *, dropout: float, shape: EncoderShape
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooler = pooler
        self.dropout = nn.Dropout(dropout)
        self.heads = heads
        self.shape = shape

    def forward(self, batch: TaskBatch, comparisons: Sequence[Comparison] = ()) -> ModelOutput:
        """Returns logits, routings and what the routed tokens are; and the features of each comparison."""
        context = token_context(batch)
        hidden_BSD, routings = self.encoder(batch, context, num_read=self._num_read)
        pooled_BD = self.dropout(self.pooler(hidden_BSD, batch.attention_mask_BS))
        features = tuple(compared_features(self.encoder, comparison) for comparison in comparisons)
        return ModelOutput(self.heads(pooled_BD, batch.task_ids_B), routings, context, features)

    def trunk(self, batch: TaskBatch) -> Tensor:
        """Returns the states ``[B, S, D]`` behind the encoder's frozen trunk; no collective."""
        return self.encoder.trunk(batch, token_context(batch))

    def served_by(self, batch: TaskBatch, task: int) -> Tensor:
        """Pooled states of the batch's sequences through the layers of one task, ``[B, D]`` at least float32."""
        routed = replace(batch, task_ids_B=torch.full_like(batch.task_ids_B, task))
        hidden_BSD, _ = self.encoder(routed, token_context(routed), num_read=self._num_read)
        pooled_BD: Tensor = self.pooler(hidden_BSD, batch.attention_mask_BS)
        return pooled_BD.to(torch.promote_types(pooled_BD.dtype, torch.float32))

    def answered_by(self, batch: TaskBatch, task: int) -> Tensor:
        """What one task, its head included, answers to the batch's sequences: float32 ``[B, C]``, zeros beyond its own.

        Logits of classes are centred: only their differences mean something.
        """
        pooled_BD = self.served_by(batch, task)
        logits_BC = self.heads(pooled_BD, torch.full_like(batch.task_ids_B, task))
        own_BC = torch.isfinite(logits_BC)
        count_B1 = own_BC.sum(dim=1, keepdim=True)
        answers_BC = logits_BC.masked_fill(~own_BC, 0.0)
        mean_B1 = answers_BC.sum(dim=1, keepdim=True) / count_B1
        return torch.where(own_BC & (count_B1 > 1), answers_BC - mean_B1, answers_BC)

    @property
    def _num_read(self) -> int | None:
        """Positions that the pooler reads. In training all are computed, so that dropout draws what it always drew."""
        return None if self.training else self.pooler.num_read
