"""Experts as grouped matmuls: a fixed number of kernels whatever the number of experts, and no host synchronisation.

Pure functions; :mod:`distmoe.moe.expert_mlp` makes them differentiable.

Shape letters: R rows sorted by expert, e experts on this rank, D model width, F feed-forward width, H = F or, with a
gated activation, 2F; I input width, O output width of one linear map.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distmoe.moe.activations import Activation
from distmoe.moe.expert_weights import ExpertWeights
from distmoe.moe.segments import Segments

# Columns of the matrix of ones that turns a sum over rows into a matmul: 8 of any dtype are 16 bytes or a multiple.
_ONES = 8


def forward(x_RD: Tensor, weights: ExpertWeights, segments: Segments, activation: Activation) -> tuple[Tensor, Tensor]:
    """Returns outputs ``[R, D]`` and the hidden layer before the activation ``[R, H]``."""
    offsets_e = segments.offsets_e()
    ids_R = None if weights.b_in is None else segments.ids_R()
    h_RH = _linear(x_RD, weights.w_in, weights.b_in, offsets_e, ids_R)
    return _linear(activation.apply(h_RH), weights.w_out, weights.b_out, offsets_e, ids_R), h_RH


def backward(
    grad_RD: Tensor, x_RD: Tensor, h_RH: Tensor, weights: ExpertWeights, segments: Segments, activation: Activation
) -> tuple[Tensor, ExpertWeights]:
    """Returns the gradients of rows and weights; zero for an expert without rows."""
    offsets_e = segments.offsets_e()
    a_RF = activation.apply(h_RH)
    grad_w_out = F.grouped_mm(grad_RD.t(), a_RF, offs=offsets_e)
    grad_b_out = None if weights.b_out is None else _segment_sum(grad_RD, offsets_e)
    del a_RF
    grad_RH = activation.grad(F.grouped_mm(grad_RD, weights.w_out, offs=offsets_e), h_RH)
    grad_w_in = F.grouped_mm(grad_RH.t(), x_RD, offs=offsets_e)
    grad_b_in = None if weights.b_in is None else _segment_sum(grad_RH, offsets_e)
    grad_x_RD = F.grouped_mm(grad_RH, weights.w_in, offs=offsets_e)
    return grad_x_RD, ExpertWeights(grad_w_in, grad_b_in, grad_w_out, grad_b_out)


def _linear(
    x_RI: Tensor, weight_eOI: Tensor, bias_eO: Tensor | None, offsets_e: Tensor, ids_R: Tensor | None
) -> Tensor:
    """Each row through its own expert's linear map, ``[R, O]``. grouped_mm itself takes no bias."""
    y_RO = F.grouped_mm(x_RI, weight_eOI.transpose(1, 2), offs=offsets_e)
    return y_RO if bias_eO is None or ids_R is None else y_RO.add_(bias_eO.index_select(0, ids_R))


def _segment_sum(rows_RO: Tensor, offsets_e: Tensor) -> Tensor:
    """Sum of each segment's rows, ``[e, O]``, as a product with ones.

    No atomic additions, so it is deterministic, and low precisions accumulate in float32.
    """
    ones_RX = rows_RO.new_ones(rows_RO.shape[0], _ONES)
    return F.grouped_mm(ones_RX.t(), rows_RO, offs=offsets_e)[:, 0].contiguous()
