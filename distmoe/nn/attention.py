"""Self-attention of an encoder.

Shape letters: B sequences, S positions, D model width, H heads, d width of a head (D / H).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from distmoe.nn.init import init_normal_


class SelfAttention(nn.Module):
    """Multi-head attention over all unmasked positions, through PyTorch's fused kernel.

    Queries, keys and values are one packed projection (one matmul instead of three); rows ``[0, D)`` of its weight
    make the queries, ``[D, 2D)`` the keys, ``[2D, 3D)`` the values.

    Args:
        hidden_size: D.
        num_heads: H; divides D.
        dropout: Probability of dropping an attention weight while training.
    """

    def __init__(self, hidden_size: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def reset(self, seed: int, name: str, std: float) -> None:
        """Fresh weights from the streams of their names; biases are zero."""
        for part, linear in (("qkv", self.qkv), ("out", self.out)):
            init_normal_(linear.weight, seed=seed, name=f"{name}.{part}.weight", std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, x_BSD: Tensor, mask_B11S: Tensor, *, num_queries: int | None = None) -> Tensor:
        """Returns ``[B, S, D]``, or the first ``num_queries`` positions of it.

        Args:
            x_BSD: Hidden states.
            mask_B11S: Boolean, true at keys that may be attended, or the float mask of SDPA; with a row per query where
                queries differ. A row without any key would give NaN; collation guarantees one.
            num_queries: None: all.
        """
        return self.out(self.attended(self.qkv(x_BSD), mask_B11S, num_queries=num_queries))

    def attended(self, packed_BS3D: Tensor, mask_B11S: Tensor, *, num_queries: int | None = None) -> Tensor:
        """Returns what lies between the projections, ``[B, S, D]``: the heads' values under their weights."""
        q_BHSd, k_BHSd, v_BHSd = packed_BS3D.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if num_queries is not None:
            q_BHSd = q_BHSd[:, :, :num_queries]
        context_BHSd = F.scaled_dot_product_attention(
            q_BHSd, k_BHSd, v_BHSd, attn_mask=mask_B11S, dropout_p=self.dropout if self.training else 0.0
        )
        return context_BHSd.transpose(1, 2).flatten(2)
