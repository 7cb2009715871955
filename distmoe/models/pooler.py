"""From token states to one state per sequence.

Shape letters: B sequences, S positions, D model width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from distmoe.nn.init import init_normal_


class Pooler(nn.Module):
    """BERT's pooler: a dense layer and tanh on the first token's state, or on the mean over real tokens.

    Args:
        hidden_size: D.
        pooling: ``cls`` or ``mean``.
    """

    def __init__(self, hidden_size: int, *, pooling: Literal["cls", "mean"]) -> None:
        super().__init__()
        self.pooling = pooling
        self.dense = nn.Linear(hidden_size, hidden_size)

    def reset(self, seed: int, name: str, std: float) -> None:
        """Fresh weights from the stream of their name; the bias is zero."""
        init_normal_(self.dense.weight, seed=seed, name=f"{name}.dense.weight", std=std)
        nn.init.zeros_(self.dense.bias)

    @property
    def num_read(self) -> int | None:
        """Leading positions that are read; None: all."""
        return 1 if self.pooling == "cls" else None

    def forward(self, hidden_BSD: Tensor, attention_mask_BS: Tensor) -> Tensor:
        """Returns ``[B, D]``."""
        if self.pooling == "cls":
            state_BD = hidden_BSD[:, 0]
        else:
            # Summed in float32: bf16 cannot even count beyond 256 tokens.
            mask_BS1 = attention_mask_BS.unsqueeze(-1).float()
            state_BD = ((hidden_BSD * mask_BS1).sum(1) / mask_BS1.sum(1)).to(hidden_BSD.dtype)
        return torch.tanh(self.dense(state_BD))
