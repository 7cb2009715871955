"""The decoder: token ids in, hidden states and routings out; no token sees a later one.

Shape letters: B sequences, S positions, D model width, T real tokens (padding removed).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distmoe.models.decoder_layer import DecoderLayer
from distmoe.moe.routing import Routing, TokenContext
from distmoe.nn.causal_attention import Sight, cache_mask, causal_mask
from distmoe.nn.kv_cache import KeyValueCache
from distmoe.nn.rotary import Rotary


class Decoder(nn.Module):
    """A token table, layers, and an RMSNorm over the last states.

    Args:
        embeddings: Token table; rows are not scaled.
        layers: Shallow to deep.
        final_norm: RMSNorm over the last states.
        rotary: Angles by position.
        sliding_window: Tokens that a token sees, itself included; None: all before it.
        dropout: Probability on the token states, while training.
    """

    def __init__(
        self,
        embeddings: nn.Embedding,
        layers: Sequence[DecoderLayer],
        final_norm: nn.RMSNorm,
        *,
        rotary: Rotary,
        sliding_window: int | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.layers = nn.ModuleList(layers)
        self.final_norm = final_norm
        self.dropout = nn.Dropout(dropout)
        self.rotary, self.sliding_window = rotary, sliding_window

    def forward(
        self,
        input_ids_BS: Tensor,
        token_index_T: Tensor,
        context: TokenContext,
        *,
        position_ids_BS: Tensor | None = None,
        segment_ids_BS: Tensor | None = None,
        caches: Sequence[KeyValueCache] | None = None,
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        """Returns ``[B, S, D]`` and one routing per routed layer.

        Rows are padded on the right: causality alone then keeps padding out of every real token's sight.

        Args:
            input_ids_BS: Token ids.
            token_index_T: Flat positions of the real tokens; others are not routed.
            context: Their tasks and sequences.
            position_ids_BS: Position of each token in its document; None: counted from the row's start.
            segment_ids_BS: Document of each token in its row; None: one document per row.
            caches: One per layer, to which these tokens are added; their rows hold one document each.
        """
        if position_ids_BS is None:
            position_ids_BS = torch.arange(input_ids_BS.shape[1], device=input_ids_BS.device).expand_as(input_ids_BS)
        if caches is None:
            mask_B1SL = causal_mask(position_ids_BS, segment_ids_BS, self.sliding_window)
        else:
            assert segment_ids_BS is None, "a cache holds one document per row"
            mask_B1SL = cache_mask(position_ids_BS, caches[0].keys_BhLd.shape[2], self.sliding_window)
        sight = Sight(position_ids_BS, self.rotary(position_ids_BS), mask_B1SL)
        x_BSD = self.dropout(self.embeddings(input_ids_BS))
        routings: list[Routing] = []
        for index, layer in enumerate(self.layers):
            x_BSD, routing = layer(x_BSD, sight, token_index_T, context, None if caches is None else caches[index])
            if routing is not None:
                routings.append(routing)
        return self.final_norm(x_BSD), tuple(routings)
