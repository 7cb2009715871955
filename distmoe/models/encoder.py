"""Embeddings and layers: token ids in, hidden states and routings out.

Shape letters: B sequences, S positions, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from distmoe.data.batch import TaskBatch
from distmoe.models.layer import EncoderLayer
from distmoe.moe.routing import Routing, TokenContext
from distmoe.nn.embeddings import EncoderEmbeddings


class Encoder(nn.Module):
    """A stack of layers over embeddings.

    Args:
        embeddings: Input embeddings.
        layers: Shallow to deep.
        final_norm: LayerNorm over the last states; pre-LN models need it, post-LN ones have none.
    """

    def __init__(
        self, embeddings: EncoderEmbeddings, layers: Sequence[EncoderLayer], final_norm: nn.LayerNorm | None
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.layers = nn.ModuleList(layers)
        self.final_norm = final_norm

    def forward(self, batch: TaskBatch, context: TokenContext) -> tuple[Tensor, tuple[Routing, ...]]:
        """Returns hidden states ``[B, S, D]`` (meaningless at padding) and one routing per routed layer."""
        x_BSD = self.embeddings(batch.input_ids_BS, batch.attention_mask_BS, batch.token_type_ids_BS)
        mask_B11S = batch.attention_mask_BS[:, None, None, :]
        routings: list[Routing] = []
        for layer in self.layers:
            x_BSD, routing = layer(x_BSD, mask_B11S, batch.token_index_T, context)
            if routing is not None:
                routings.append(routing)
        return (x_BSD if self.final_norm is None else self.final_norm(x_BSD)), tuple(routings)
