"""Causal self-attention of a decoder: grouped queries, rotary positions, optional normalised queries and keys.

Shape letters: B sequences, S positions, L keys (S, or the slots of a cache), D model width, H query heads, h key-value
heads, d width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmoe.nn.init import init_normal_
from distmoe.nn.kv_cache import KeyValueCache
from distmoe.nn.rotary import Turns, turn


@dataclass(frozen=True)
class Sight:
    """What every layer of a decoder must know about positions, made once per forward pass.

    Attributes:
        positions_BS: Position of each token in its document, int64.
        turns: Rotary angles of these positions.
        mask_B1SL: Boolean, true where a query sees a key; None: every token sees itself and all before it in its row.
    """

    positions_BS: Tensor
    turns: Turns
    mask_B1SL: Tensor | None


def causal_mask(positions_BS: Tensor, segment_ids_BS: Tensor | None, window: int | None) -> Tensor | None:
    """Who sees whom inside a row, ``[B, 1, S, S]``: oneself and earlier tokens of one's own document.

    Args:
        positions_BS: Only its shape and device are read.
        segment_ids_BS: Document of each token; None: one per row.
        window: Only this many tokens back, oneself included; None: all.

    Returns:
        None where plain causality says it all, which the fast kernels know without a mask.
    """
    length = positions_BS.shape[1]
    if segment_ids_BS is None and (window is None or window >= length):
        return None
    index_S = torch.arange(length, device=positions_BS.device)
    distance_SS = index_S.unsqueeze(1) - index_S
    mask_SS = distance_SS >= 0
    if window is not None:
        mask_SS = mask_SS & (distance_SS < window)
    if segment_ids_BS is None:
        return mask_SS[None, None]
    same_BSS = segment_ids_BS.unsqueeze(2) == segment_ids_BS.unsqueeze(1)
    return (mask_SS & same_BSS).unsqueeze(1)


def cache_mask(positions_BS: Tensor, num_slots: int, window: int | None) -> Tensor:
    """As :func:`causal_mask` over the slots of a cache, where slot and position are one: ``[B, 1, S, L]``."""
    distance_BSL = positions_BS.unsqueeze(2) - torch.arange(num_slots, device=positions_BS.device)
    mask_BSL = distance_BSL >= 0
    if window is not None:
        mask_BSL = mask_BSL & (distance_BSL < window)
    return mask_BSL.unsqueeze(1)


class CausalAttention(nn.Module):
    """Multi-head attention whose key-value heads are shared by groups of query heads (GQA, arXiv 2305.13245).

    Args:
        hidden_size: D.
        num_heads: H.
        num_kv_heads: h; divides H.
        head_size: d.
        bias: Of the projections to queries, keys and values.
        out_bias: Of the projection back.
        norm_eps: RMSNorm over each query and key head before it is turned, with this epsilon; None: none.
        dropout: Probability of dropping an attention weight while training.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_size: int,
        bias: bool = False,
        out_bias: bool = False,
        norm_eps: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_kv_heads, self.head_size, self.dropout = num_kv_heads, head_size, dropout
        self.shares_keys = num_kv_heads != num_heads
        self.q = nn.Linear(hidden_size, num_heads * head_size, bias=bias)
        self.k = nn.Linear(hidden_size, num_kv_heads * head_size, bias=bias)
        self.v = nn.Linear(hidden_size, num_kv_heads * head_size, bias=bias)
        self.out = nn.Linear(num_heads * head_size, hidden_size, bias=out_bias)
        self.q_norm = None if norm_eps is None else nn.RMSNorm(head_size, eps=norm_eps)
        self.k_norm = None if norm_eps is None else nn.RMSNorm(head_size, eps=norm_eps)

    def reset(self, seed: int, name: str, std: float) -> None:
        """Fresh weights from the streams of their names; biases are zero."""
        for part in ("q", "k", "v", "out"):
            linear = getattr(self, part)
            init_normal_(linear.weight, seed=seed, name=f"{name}.{part}.weight", std=std)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x_BSD: Tensor, sight: Sight, cache: KeyValueCache | None = None) -> Tensor:
        """Returns ``[B, S, D]``.

        Args:
            x_BSD: Hidden states.
            sight: Positions, and who sees whom.
            cache: Earlier positions; the new ones are added to it. ``sight.mask_B1SL`` is over its slots then.
        """
        return self.out(self.attended(self.q(x_BSD), self.k(x_BSD), self.v(x_BSD), sight, cache))

    def attended(
        self, queries_BSD: Tensor, keys_BSD: Tensor, values_BSD: Tensor, sight: Sight, cache: KeyValueCache | None
    ) -> Tensor:
        """Returns what lies between the projections, ``[B, S, H d]``: the heads' values under their weights."""
        q_BHSd, k_BhSd, v_BhSd = (
            part_BSD.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for part_BSD in (queries_BSD, keys_BSD, values_BSD)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q_BHSd, k_BhSd = self.q_norm(q_BHSd), self.k_norm(k_BhSd)
        q_BHSd, k_BhSd = turn(q_BHSd, sight.turns), turn(k_BhSd, sight.turns)
        if cache is not None:
            k_BhSd, v_BhSd = cache.extended(k_BhSd, v_BhSd, sight.positions_BS)
        context_BHSd = F.scaled_dot_product_attention(
            q_BHSd,
            k_BhSd,
            v_BhSd,
            attn_mask=sight.mask_B1SL,
            is_causal=sight.mask_B1SL is None,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.shares_keys,
        )
        return context_BHSd.transpose(1, 2).flatten(2)
