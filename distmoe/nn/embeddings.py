"""Input embeddings of BERT and RoBERTa: token + position + segment, then LayerNorm and dropout.

Shape letters: B sequences, S positions, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distmoe.nn.init import init_normal_


class EncoderEmbeddings(nn.Module):
    """Sum of three tables, normalised.

    Args:
        vocab_size: Rows of the token table.
        max_positions: Longest sequence. The position table has ``position_offset`` rows more.
        num_token_types: Rows of the segment table. With one row every segment id reads it: RoBERTa's tokenizers have
            no segments, but pair batches may carry ids.
        hidden_size: D.
        position_offset: 0 (BERT): position ``s`` reads row ``s``. Otherwise (RoBERTa, pad id + 1) the n-th attended
            token (from 0) reads row ``offset + n`` and padding reads row ``offset - 1``.
        layer_norm_eps: Epsilon of the normalisation.
        dropout: Probability while training.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        max_positions: int,
        num_token_types: int,
        hidden_size: int,
        position_offset: int,
        layer_norm_eps: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.position_offset = position_offset
        self.num_token_types = num_token_types
        self.word = nn.Embedding(vocab_size, hidden_size)
        self.position = nn.Embedding(max_positions + position_offset, hidden_size)
        self.token_type = nn.Embedding(num_token_types, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def reset(self, seed: int, name: str, std: float) -> None:
        """Fresh tables from the streams of their names; LayerNorm starts as identity."""
        for part in ("word", "position", "token_type"):
            init_normal_(getattr(self, part).weight, seed=seed, name=f"{name}.{part}.weight", std=std)
        self.norm.reset_parameters()

    def forward(self, input_ids_BS: Tensor, attention_mask_BS: Tensor, token_type_ids_BS: Tensor) -> Tensor:
        """Returns ``[B, S, D]``; the mask is boolean, true at real tokens."""
        if self.num_token_types == 1:
            token_type_ids_BS = torch.zeros_like(token_type_ids_BS)
        embedded_BSD = self.word(input_ids_BS) + self.token_type(token_type_ids_BS)
        return self.dropout(self.norm(embedded_BSD + self.position(self._positions(attention_mask_BS))))

    def _positions(self, attention_mask_BS: Tensor) -> Tensor:
        if self.position_offset == 0:
            return torch.arange(attention_mask_BS.shape[1], device=attention_mask_BS.device)
        mask_BS = attention_mask_BS.long()
        return mask_BS.cumsum(1) * mask_BS + (self.position_offset - 1)
