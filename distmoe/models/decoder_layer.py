"""One layer of a decoder: causal attention and a dense or routed feed-forward part, each behind an RMSNorm.

Shape letters: B sequences, S positions, D model width, T real tokens (padding removed).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distmoe.models.routed_positions import route_positions
from distmoe.moe.layer import RoutedFeedForward
from distmoe.moe.routing import Routing, TokenContext
from distmoe.nn.causal_attention import CausalAttention, Sight
from distmoe.nn.feed_forward import FeedForward
from distmoe.nn.kv_cache import KeyValueCache


class DecoderLayer(nn.Module):
    """``x + attention(RMSNorm(x))``, then the same with the feed-forward part.

    Args:
        attention: Causal self-attention.
        feed_forward: Dense or routed; a routed one sees real tokens only.
        hidden_size: D.
        norm_eps: Epsilon of both RMSNorms.
        dropout: Probability on each sub-layer's output, while training.
        activation_checkpointing: As in :class:`~distmoe.models.layer.EncoderLayer`.
    """

    def __init__(
        self,
        attention: CausalAttention,
        feed_forward: FeedForward | RoutedFeedForward,
        *,
        hidden_size: int,
        norm_eps: float,
        dropout: float,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.attention = attention
        self.feed_forward_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(dropout)
        self.activation_checkpointing = activation_checkpointing

    def forward(
        self,
        x_BSD: Tensor,
        sight: Sight,
        token_index_T: Tensor,
        context: TokenContext,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """Returns the new states ``[B, S, D]`` and, if the layer is routed, where its tokens went.

        Args:
            x_BSD: Hidden states.
            sight: Positions, and who sees whom.
            token_index_T: Flat positions of the real tokens.
            context: Tasks and sequences of the real tokens.
            cache: Earlier positions, while generating.
        """
        x_BSD = self._recomputed(self._attend, x_BSD, sight, cache)
        if not isinstance(self.feed_forward, RoutedFeedForward):
            return self._recomputed(self._transform, x_BSD), None
        change_BSD, routing = self._route(self.feed_forward, self.feed_forward_norm(x_BSD), token_index_T, context)
        return x_BSD + self.dropout(change_BSD), routing

    def _route(
        self, routed: RoutedFeedForward, x_BSD: Tensor, token_index_T: Tensor, context: TokenContext
    ) -> tuple[Tensor, Routing]:
        return route_positions(routed, x_BSD, token_index_T, context)

    def _attend(self, x_BSD: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        return x_BSD + self.dropout(self.attention(self.attention_norm(x_BSD), sight, cache))

    def _transform(self, x_BSD: Tensor) -> Tensor:
        return x_BSD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BSD)))

    def _recomputed(self, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if self.activation_checkpointing and self.training:
            return checkpoint(function, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return function(*inputs)
