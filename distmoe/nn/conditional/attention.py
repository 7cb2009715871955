"""Conditional attention: a task-specific bias on attention scores, in blocks on the diagonal.

Shape letters: B sequences, S positions, Q positions that ask (the first of S), T tasks, N tasks or sequences,
L positions that have a bias, s side of a block, R rows (min(S, L)).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmoe.nn.conditional.conditioning import Conditioning
from distmoe.nn.conditional.generator import Generator, GeneratorFactory
from distmoe.nn.conditional.module import ConditionalModule

AttentionForm = Literal["vector", "full"]


class ConditionalAttentionBias(ConditionalModule):
    """``M(z) = blockdiag_n(A_n * (1 + gamma(z)) + beta(z))``, added to ``Q K^T / sqrt(d)`` before the softmax.

    M is 0 (neutral, not forbidden) off the blocks and beyond ``max_length``; it is the same for all heads and for all
    rows of a task. Being a bias with a gradient it goes through SDPA's float mask: plain flash attention has none.

    Args:
        max_length: L. Shorter batches crop M. Costs L * s parameters.
        block_side: s. Positions see the bias of their own block of s neighbours only; the last block may be smaller.
        form: ``vector``: s entries of gamma and of beta, one per column of a block, the same for its rows (as
            published code runs). ``full``: s * s entries, the paper's form.
        generators: Makes the generator of gamma and beta.
    """

    def __init__(self, *, max_length: int, block_side: int, form: AttentionForm, generators: GeneratorFactory) -> None:
        super().__init__()
        assert 0 < block_side <= max_length, "the configuration refuses other sides"
        self.form = form
        # Row p is row p of the block that position p lies in; columns are those of that block.
        self.blocks_Ls = nn.Parameter(torch.empty(max_length, block_side))
        entries = block_side if form == "vector" else block_side * block_side
        self.generator: Generator = generators(2 * entries)

    def reset(self, seed: int, name: str, std: float) -> None:
        nn.init.zeros_(self.blocks_Ls)

    def forward(
        self,
        conditioning: Conditioning,
        mask_B11S: Tensor,
        *,
        dtype: torch.dtype,
        positions_BS: Tensor | None = None,
        num_queries: int | None = None,
    ) -> Tensor:
        """Returns the float mask of SDPA ``[B, 1, Q, S]``: M where a key may be attended, -inf elsewhere.

        M is made per task and then gathered, unless there are more tasks than sequences.

        Args:
            conditioning: Tasks of the rows.
            mask_B11S: Boolean, true at keys that may be attended; ``[B, 1, S, S]`` is accepted too.
            dtype: Of the queries, as SDPA asks for.
            positions_BS: For packed documents, the position of each token inside its document, int64; the mask must
                keep documents apart. None: tokens stand at ``0 .. S-1``.
            num_queries: Q; the mask has 1 or Q rows. None: all positions ask.
        """
        length, task_ids_B = mask_B11S.shape[-1], conditioning.task_ids_B
        values_TRs = self._values(conditioning, length if positions_BS is None else None)
        if positions_BS is not None:
            bias_BQS = self._gather(_of_rows(values_TRs, task_ids_B), positions_BS)[:, :num_queries]
        elif len(values_TRs) > len(task_ids_B):
            bias_BQS = self._spread(_of_rows(values_TRs, task_ids_B), length)[:, :num_queries]
        else:
            # Gathered in float32: its backward pass adds up the rows of a task, and in bf16 that would round at each.
            bias_BQS = _of_rows(self._spread(values_TRs, length)[:, :num_queries], task_ids_B)
        # Added, not chosen by torch.where, which takes two to three times as long (CPU). Behind a softmax the gradient
        # at -inf is 0 either way.
        forbidden_B11S = torch.zeros_like(mask_B11S, dtype=dtype).masked_fill_(~mask_B11S, float("-inf"))
        return bias_BQS.to(dtype).unsqueeze(1) + forbidden_B11S

    def values(self, conditioning: Conditioning) -> Tensor:
        """Returns the block rows of all positions, ``[B, L, s]`` float32."""
        return _of_rows(self._values(conditioning), conditioning.task_ids_B)

    def _values(self, conditioning: Conditioning, length: int | None = None) -> Tensor:
        """The block rows of the first ``length`` positions (None: of all) for every task, ``[T, R, s]`` float32."""
        max_length, side = self.blocks_Ls.shape
        num_rows = max_length if length is None else min(length, max_length)
        generated_Tm = self.generator(None, conditioning.z_Tk)
        gamma, beta = generated_Tm.unflatten(-1, (2, -1, side)).unbind(1)  # [T, 1 or s, s]
        if self.form == "full":
            repeats = -(-num_rows // side)
            gamma, beta = (part.repeat(1, repeats, 1)[:, :num_rows] for part in (gamma, beta))
        return torch.addcmul(beta, self.blocks_Ls[:num_rows].float(), 1 + gamma)

    def _spread(self, values_NRs: Tensor, length: int) -> Tensor:
        """Writes row ``i`` at the columns of its block: repeat the columns over all blocks, keep the diagonal."""
        max_length, side = self.blocks_Ls.shape
        rows_NSs = F.pad(values_NRs, (0, 0, 0, length - values_NRs.shape[1]))
        tiled_NSS = rows_NSs.repeat(1, 1, -(-length // side))[..., :length]
        positions_S = torch.arange(length, device=values_NRs.device)
        return tiled_NSS.masked_fill(_outside(positions_S, max_length, side), 0.0)

    def _gather(self, values_BLs: Tensor, positions_BS: Tensor) -> Tensor:
        """The same for tokens at any positions: row by the query's position, column by the key's."""
        max_length, side = self.blocks_Ls.shape
        length = positions_BS.shape[1]
        rows_BS1 = positions_BS.clamp(max=max_length - 1).unsqueeze(2)
        rows_BSs = values_BLs.gather(1, rows_BS1.expand(-1, -1, side))
        columns_B1S = (positions_BS % side).unsqueeze(1)
        found_BSS = rows_BSs.gather(2, columns_B1S.expand(-1, length, -1))
        return found_BSS.masked_fill(_outside(positions_BS, max_length, side), 0.0)


def _of_rows(values_Tmn: Tensor, task_ids_B: Tensor) -> Tensor:
    """Matrices of the rows' tasks; an embedding, because its backward pass adds up rows in a fixed order."""
    return F.embedding(task_ids_B, values_Tmn.flatten(1)).unflatten(1, values_Tmn.shape[1:])


def _outside(positions: Tensor, max_length: int, side: int) -> Tensor:
    """Pairs (query, key) without a bias: in different blocks, or either beyond the last biased position."""
    block, beyond = positions // side, positions >= max_length
    return (block.unsqueeze(-1) != block.unsqueeze(-2)) | beyond.unsqueeze(-1) | beyond.unsqueeze(-2)
