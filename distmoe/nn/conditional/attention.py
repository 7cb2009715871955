"""Conditional attention: a task-specific bias on attention scores, in blocks on the diagonal.

Shape letters: B sequences, S positions, Q positions that ask (the first of S), T tasks, N tasks or sequences,
L positions that have a bias, s side of a block, R rows (min(S, L)).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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

        Blocks are made per task, gathered, and added to the mask, so that nothing of size ``Q * S`` is made twice.

        Args:
            conditioning: Tasks of the rows.
            mask_B11S: Boolean, true at keys that may be attended; ``[B, 1, S, S]`` is accepted too.
            dtype: Of the queries, as SDPA asks for.
            positions_BS: For packed documents, the position of each token inside its document, int64; the mask must
                keep documents apart. None: tokens stand at ``0 .. S-1``.
            num_queries: Q; the mask has 1 or Q rows. None: all positions ask.
        """
        # Values are gathered in float32: the backward pass adds up the rows of a task, and bf16 would round at each.
        forbidden_B11S = torch.zeros_like(mask_B11S, dtype=dtype).masked_fill_(~mask_B11S, float("-inf"))
        if positions_BS is not None:
            values_BLs = _of_rows(self._values(conditioning), conditioning.task_ids_B)
            bias_BQS = self._gather(values_BLs, positions_BS)[:, :num_queries]
            return bias_BQS.to(dtype).unsqueeze(1) + forbidden_B11S
        length = mask_B11S.shape[-1]
        num_queries = length if num_queries is None else num_queries
        num_biased = min(length, len(self.blocks_Ls))
        values_BRs = _of_rows(self._values(conditioning, min(num_queries, num_biased)), conditioning.task_ids_B)
        forbidden_BQS = forbidden_B11S.squeeze(1).expand(-1, num_queries, -1)
        return _AddOnDiagonal.apply(values_BRs.to(dtype), forbidden_BQS, num_biased).unsqueeze(1)  # type: ignore[no-any-return]

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

    def _gather(self, values_BLs: Tensor, positions_BS: Tensor) -> Tensor:
        """The same for tokens at any positions: row by the query's position, column by the key's."""
        max_length, side = self.blocks_Ls.shape
        length = positions_BS.shape[1]
        rows_BS1 = positions_BS.clamp(max=max_length - 1).unsqueeze(2)
        rows_BSs = values_BLs.gather(1, rows_BS1.expand(-1, -1, side))
        columns_B1S = (positions_BS % side).unsqueeze(1)
        found_BSS = rows_BSs.gather(2, columns_B1S.expand(-1, length, -1))
        return found_BSS.masked_fill(_outside(positions_BS, max_length, side), 0.0)


class _AddOnDiagonal(torch.autograd.Function):
    """Adds blocks to the diagonal of a copy of a mask. The backward pass reads nothing else."""

    @staticmethod
    def forward(ctx: Any, values_BRs: Tensor, mask_BQS: Tensor, num_biased: int) -> Tensor:
        """``num_biased``: keys from there on have no bias."""
        ctx.shape, ctx.num_biased = values_BRs.shape, num_biased
        result_BQS = mask_BQS.clone(memory_format=torch.contiguous_format)
        for blocks, values in _blocks(result_BQS, values_BRs, num_biased):
            blocks.add_(values)
        return result_BQS

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BQS: Tensor) -> tuple[Tensor, None, None]:
        gradient_BRs = gradient_BQS.new_zeros(ctx.shape)
        for blocks, values in _blocks(gradient_BQS, gradient_BRs, ctx.num_biased):
            values.copy_(blocks)
        return gradient_BRs, None, None


def _blocks(matrix_BQS: Tensor, values_BRs: Tensor, num_biased: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of the whole blocks on the diagonal and of their values, then of the one that is cut off, if any."""
    num_rows, side = values_BRs.shape[1:]
    num_blocks, whole = num_rows // side, num_rows - num_rows % side
    if num_blocks:
        square = matrix_BQS[:, :whole, :whole].unflatten(2, (num_blocks, side)).unflatten(1, (num_blocks, side))
        yield (
            square.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2),
            values_BRs[:, :whole].unflatten(1, (num_blocks, side)),
        )
    if whole < num_rows:
        columns = min(whole + side, num_biased)
        yield matrix_BQS[:, whole:num_rows, whole:columns], values_BRs[:, whole:, : columns - whole]


def _of_rows(values_Tmn: Tensor, task_ids_B: Tensor) -> Tensor:
    """Matrices of the rows' tasks; an embedding, because its backward pass adds up rows in a fixed order."""
    return F.embedding(task_ids_B, values_Tmn.flatten(1)).unflatten(1, values_Tmn.shape[1:])


def _outside(positions: Tensor, max_length: int, side: int) -> Tensor:
    """Pairs (query, key) without a bias: in different blocks, or either beyond the last biased position."""
    block, beyond = positions // side, positions >= max_length
    return (block.unsqueeze(-1) != block.unsqueeze(-2)) | beyond.unsqueeze(-1) | beyond.unsqueeze(-2)
