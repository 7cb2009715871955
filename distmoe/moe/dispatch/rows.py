"""Copying items into rows, and summing weighted rows into items: the two halves of dispatch, adjoint to each other.

An *item* is a token (or, behind a de-duplicated exchange, a received token); a *row* is a copy of it for one expert.
Both directions are gathers, forward and backward: a scatter would add atomically, slower and in random order.

Shape letters: T items, K rows per item at most, R rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class RowMap:
    """Which row copies which item.

    Attributes:
        items_R: Item of each row, int64.
        rows_TK: Rows of each item, int64; where an item has fewer than K rows, any number below R.
        present_TK: Which entries of ``rows_TK`` count; None: all.
    """

    items_R: Tensor
    rows_TK: Tensor
    present_TK: Tensor | None = None


def invert(order_R: Tensor, size: int | None = None) -> Tensor:
    """``result[order[r]] = r``, ``[size]``; 0 where no row points."""
    result = order_R.new_zeros(order_R.shape[0] if size is None else size)
    return result.scatter_(0, order_R, torch.arange(order_R.shape[0], device=order_R.device))


def spread(items_TD: Tensor, row_map: RowMap) -> Tensor:
    """Each row a copy of its item, ``[R, D]``."""
    return _Spread.apply(items_TD, row_map)


def collect(rows_RD: Tensor, weights_R: Tensor | None, row_map: RowMap) -> Tensor:
    """Each item the sum of its rows, times their weights, ``[T, D]`` in the rows' dtype.

    Products and sums are float32 at least, one ``[T, D]`` buffer at a time: never a float32 copy of all rows.
    """
    return _Collect.apply(rows_RD, weights_R, row_map)


def permute(rows_RD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
    """Rows in another order, ``result[r] = rows[order[r]]``."""
    return _Permute.apply(rows_RD, order_R, inverse_R)


def _sum_rows(rows_RD: Tensor, weights_R: Tensor | None, row_map: RowMap) -> Tensor:
    num_items, num_choices = row_map.rows_TK.shape
    if rows_RD.shape[0] == 0 or num_items == 0:
        return rows_RD.new_zeros(num_items, rows_RD.shape[1])
    wide = torch.promote_types(rows_RD.dtype, torch.float32)
    total_TD: Tensor | None = None
    for choice in range(num_choices):
        rows_T = row_map.rows_TK[:, choice]
        part_TD = rows_RD.index_select(0, rows_T)
        factor_T = None if weights_R is None else weights_R.index_select(0, rows_T).to(wide)
        if row_map.present_TK is not None:
            present_T = row_map.present_TK[:, choice]
            factor_T = present_T.to(wide) if factor_T is None else factor_T * present_T
        if total_TD is None:
            total_TD = part_TD.to(wide)
            if factor_T is not None:
                total_TD = total_TD.mul_(factor_T[:, None])
        elif factor_T is None:
            total_TD.add_(part_TD)
        else:
            total_TD.addcmul_(part_TD.to(wide), factor_T[:, None])
    assert total_TD is not None
    return total_TD.to(rows_RD.dtype)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, items_TD: Tensor, row_map: RowMap) -> Tensor:
        ctx.row_map = row_map
        return items_TD.index_select(0, row_map.items_R)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        return _sum_rows(grad_RD, None, ctx.row_map), None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, weights_R: Tensor | None, row_map: RowMap) -> Tensor:
        ctx.row_map = row_map
        if weights_R is None:
            ctx.save_for_backward()
        else:
            # The rows themselves are needed only for the gradient of the weights.
            ctx.save_for_backward(weights_R, *([rows_RD] if weights_R.requires_grad else []))
        return _sum_rows(rows_RD, weights_R, row_map)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        grad_RD = grad_TD.index_select(0, ctx.row_map.items_R)
        if not ctx.saved_tensors:
            return grad_RD, None, None
        weights_R, *rows = ctx.saved_tensors
        grad_weights_R = None
        if rows:
            grad_weights_R = _row_dots(rows[0], grad_RD).to(weights_R.dtype)
        grad_RD.mul_(weights_R.to(grad_RD.dtype)[:, None])
        return grad_RD, grad_weights_R, None


def _row_dots(a_RD: Tensor, b_RD: Tensor) -> Tensor:
    """Dot product of equal rows, ``[R]``, summed in float32 at least."""
    return torch.sum(a_RD * b_RD, dim=1, dtype=torch.promote_types(a_RD.dtype, torch.float32))


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_R)
        return rows_RD.index_select(0, order_R)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        (inverse_R,) = ctx.saved_tensors
        return grad_RD.index_select(0, inverse_R), None, None
