"""One Transformer layer, post-LN (BERT) or pre-LN, with a dense or a routed feed-forward part.

Task-conditioned parts (:mod:`distmoe.nn.conditional`) stand in for its LayerNorms and its attention mask, and behind
it; a layer without them is the plain one.

Shape letters: B sequences, S positions, D model width, T real tokens (padding removed).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distmoe.models.routed_positions import route_positions
from distmoe.moe.layer import RoutedFeedForward
from distmoe.moe.routing import Routing, TokenContext
from distmoe.nn.attention import SelfAttention
from distmoe.nn.conditional.build import LayerParts
from distmoe.nn.conditional.conditioning import Conditioning
from distmoe.nn.conditional.layer_norm import ConditionalLayerNorm
from distmoe.nn.feed_forward import FeedForward


class EncoderLayer(nn.Module):
    """Attention and a feed-forward part, each with residual, dropout and LayerNorm.

    Args:
        attention: Self-attention sub-layer.
        feed_forward: Dense or routed; a routed one sees real tokens only.
        hidden_size: D.
        norm: ``post``: ``LN(x + f(x))``; ``pre``: ``x + f(LN(x))``.
        layer_norm_eps: Epsilon of both LayerNorms.
        dropout: Probability on each sub-layer's output, while training.
        activation_checkpointing: Recompute attention and a dense feed-forward part in backward. A routed part decides
            for itself what to recompute, so that its all-to-all is never repeated.
        conditional: Task-conditioned parts; None: a plain layer.
    """

    def __init__(
        self,
        attention: SelfAttention,
        feed_forward: FeedForward | RoutedFeedForward,
        *,
        hidden_size: int,
        norm: Literal["post", "pre"],
        layer_norm_eps: float,
        dropout: float,
        activation_checkpointing: bool,
        conditional: LayerParts | None = None,
    ) -> None:
        super().__init__()
        parts = conditional or LayerParts(None, None, None, None)
        self.attention = attention
        self.attention_norm = parts.attention_norm or nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.feed_forward = feed_forward
        self.feed_forward_norm = parts.feed_forward_norm or nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.attention_bias = parts.attention_bias
        self.bottleneck = parts.bottleneck
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = norm == "pre"
        self.activation_checkpointing = activation_checkpointing

    def forward(
        self,
        x_BSD: Tensor,
        mask_B11S: Tensor,
        token_index_T: Tensor,
        context: TokenContext,
        conditioning: Conditioning | None = None,
        *,
        num_read: int | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """Returns the new states ``[B, S, D]`` and, if the layer is routed, where its tokens went.

        Args:
            x_BSD: Hidden states.
            mask_B11S: Boolean, true at keys that may be attended.
            token_index_T: Flat positions of the real tokens.
            context: Tasks and sequences of the real tokens.
            conditioning: Tasks of the rows; needed by conditional parts only.
            num_read: Dense layers: compute the new states of the first ``num_read`` positions only, which then are all
                that is returned. Their values do not depend on it, but for rounding. None: of all.
        """
        assert num_read is None or self.is_dense, "a routed part takes all real tokens"
        attended_BSD = self._recomputed(self._attend, x_BSD, mask_B11S, conditioning, num_read)
        if not isinstance(self.feed_forward, RoutedFeedForward):
            return self._recomputed(self._transform, attended_BSD, conditioning), None
        normed_BSD = _normalise(self.feed_forward_norm, attended_BSD, conditioning) if self.pre_norm else attended_BSD
        change_BSD, routing = self._route(self.feed_forward, normed_BSD, token_index_T, context)
        return self._finish(attended_BSD, change_BSD, conditioning), routing

    @property
    def is_dense(self) -> bool:
        """Whether the feed-forward part is not routed."""
        return not isinstance(self.feed_forward, RoutedFeedForward)

    def _route(
        self, routed: RoutedFeedForward, x_BSD: Tensor, token_index_T: Tensor, context: TokenContext
    ) -> tuple[Tensor, Routing]:
        return route_positions(routed, x_BSD, token_index_T, context)

    def _attend(
        self, x_BSD: Tensor, mask_B11S: Tensor, conditioning: Conditioning | None, num_read: int | None
    ) -> Tensor:
        if self.attention_bias is not None:
            mask_B11S = self.attention_bias(conditioning, mask_B11S, dtype=x_BSD.dtype, num_queries=num_read)
        normed_BSD = _normalise(self.attention_norm, x_BSD, conditioning) if self.pre_norm else x_BSD
        change_BSD = self.dropout(self.attention(normed_BSD, mask_B11S, num_queries=num_read))
        attended_BSD = (x_BSD if num_read is None else x_BSD[:, :num_read]) + change_BSD
        return attended_BSD if self.pre_norm else _normalise(self.attention_norm, attended_BSD, conditioning)

    def _transform(self, attended_BSD: Tensor, conditioning: Conditioning | None) -> Tensor:
        normed_BSD = _normalise(self.feed_forward_norm, attended_BSD, conditioning) if self.pre_norm else attended_BSD
        return self._finish(attended_BSD, self.feed_forward(normed_BSD), conditioning)

    def _finish(self, attended_BSD: Tensor, change_BSD: Tensor, conditioning: Conditioning | None) -> Tensor:
        """Residual of the feed-forward part, its LayerNorm (post-LN) and the bottleneck."""
        x_BSD = attended_BSD + self.dropout(change_BSD)
        if not self.pre_norm:
            x_BSD = _normalise(self.feed_forward_norm, x_BSD, conditioning)
        return x_BSD if self.bottleneck is None else self.bottleneck(x_BSD, attended_BSD, conditioning)

    def _recomputed(self, function: Callable[..., Tensor], *inputs: Tensor | Conditioning | int | None) -> Tensor:
        if self.activation_checkpointing and self.training:
            return checkpoint(function, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return function(*inputs)


def _normalise(norm: nn.LayerNorm, x_BSD: Tensor, conditioning: Conditioning | None) -> Tensor:
    if isinstance(norm, ConditionalLayerNorm):
        assert conditioning is not None, "a conditional LayerNorm needs the tasks of the rows"
        return norm(x_BSD, conditioning)  # type: ignore[no-any-return]
    return norm(x_BSD)
