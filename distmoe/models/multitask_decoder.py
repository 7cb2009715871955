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
    """Maps a batch of mixed tasks to the logits of the tokens that follow.

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
        """Returns logits at the batch's targets, and routings; of labels it reads where they are, not what they are.

        Logits are the largest tensor of a decoder, ``positions x vocabulary``: prompts have none.
        """
        context = token_context(batch)
        hidden_BSD, routings = self.decoder(
            batch.input_ids_BS,
            batch.token_index_T,
            context,
            position_ids_BS=batch.position_ids_BS,
            segment_ids_BS=batch.segment_ids_BS,
        )
        index_L = batch.token_index_T if batch.target_index_L is None else batch.target_index_L
        sequence_ids_L = index_L.div(batch.input_ids_BS.shape[1], rounding_mode="floor")
        hidden_LD = hidden_BSD.flatten(0, 1).index_select(0, index_L)
        task_ids_L = batch.task_ids_B.index_select(0, sequence_ids_L)
        logits_LV = self.heads(hidden_LD, task_ids_L, self.decoder.embeddings.weight)
        return TokenOutput(logits_LV, index_L, sequence_ids_L, routings, context)
