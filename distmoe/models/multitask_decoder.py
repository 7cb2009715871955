"""The language model of a run: a decoder and the heads over its vocabulary."""

from __future__ import annotations

from torch import nn

from distmoe.data.batch import TaskBatch
from distmoe.models.decoder import Decoder
from distmoe.models.decoder_shape import DecoderShape
from distmoe.models.output import TokenOutput
from distmoe.models.routed_positions import token_context
from distmoe.models.token_heads import TokenHeads


class MultiTaskDecoder(nn.Module):
    """Maps a batch of mixed tasks to the logits of the token that follows each real token.

    Built by :func:`distmoe.models.build.build_model`. Single-process code, like
    :class:`~distmoe.models.multitask.MultiTaskEncoder`.

    Args:
        decoder: Decoder of all tasks.
        heads: Head of all tasks, or one per task.
        shape: Shape that the decoder was built with; checkpoints and exports record it.
    """

    def __init__(self, decoder: Decoder, heads: TokenHeads, *, shape: DecoderShape) -> None:
        super().__init__()
        self.decoder = decoder
        self.heads = heads
        self.shape = shape

    def forward(self, batch: TaskBatch) -> TokenOutput:
        """Returns the logits of all real tokens, and routings; reads no label."""
        context = token_context(batch)
        hidden_BSD, routings = self.decoder(
            batch.input_ids_BS,
            batch.token_index_T,
            context,
            position_ids_BS=batch.position_ids_BS,
            segment_ids_BS=batch.segment_ids_BS,
        )
        hidden_TD = hidden_BSD.flatten(0, 1).index_select(0, batch.token_index_T)
        logits_TV = self.heads(hidden_TD, context.task_ids_T, self.decoder.embeddings.weight)
        return TokenOutput(logits_TV, routings, context)
