"""Experts one after the other: for few large experts, for every dtype and width, and on CPU.

An expert's rows stay in the processor's cache from its first matmul to its last, and matmuls write where the result
belongs. Pure functions; :mod:`distmoe.moe.expert_mlp` makes them differentiable.

Shape letters: R rows sorted by expert, e experts on this rank, D model width, F feed-forward width, H = F or, with a
gated activation, 2F.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distmoe.moe.activations import Activation
from distmoe.moe.expert_weights import ExpertWeights
from distmoe.moe.segments import Segments


def forward(x_RD: Tensor, weights: ExpertWeights, segments: Segments, activation: Activation) -> tuple[Tensor, Tensor]:
    """Returns outputs ``[R, D]`` and the hidden layer before the activation ``[R, H]``."""
    h_RH = x_RD.new_empty(x_RD.shape[0], weights.w_in.shape[1])
    y_RD = x_RD.new_empty(x_RD.shape[0], weights.w_out.shape[1])
    for expert, rows in segments.slices():
        if rows.start < rows.stop:
            w_in, b_in, w_out, b_out = weights.of(expert)
            _linear_(h_RH[rows], x_RD[rows], w_in, b_in)
            _linear_(y_RD[rows], activation.apply(h_RH[rows]), w_out, b_out)
    return y_RD, h_RH


def backward(
    grad_RD: Tensor, x_RD: Tensor, h_RH: Tensor, weights: ExpertWeights, segments: Segments, activation: Activation
) -> tuple[Tensor, ExpertWeights]:
    """Returns the gradients of rows and weights; zero for an expert without rows."""
    grads = weights.empty_like()
    grad_x_RD = torch.empty_like(x_RD)
    for expert, rows in segments.slices():
        w_in, _, w_out, _ = weights.of(expert)
        grad_w_in, grad_b_in, grad_w_out, grad_b_out = grads.of(expert)
        if rows.start == rows.stop:
            for grad in (grad_w_in, grad_b_in, grad_w_out, grad_b_out):
                if grad is not None:
                    grad.zero_()
            continue
        _linear_grad_(grad_w_out, grad_b_out, grad_RD[rows], activation.apply(h_RH[rows]))
        grad_h = activation.grad(grad_RD[rows] @ w_out, h_RH[rows])
        _linear_grad_(grad_w_in, grad_b_in, grad_h, x_RD[rows])
        torch.mm(grad_h, w_in, out=grad_x_RD[rows])
    return grad_x_RD, grads


def _linear_(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Writes ``x W^T + b``."""
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


def _linear_grad_(grad_weight: Tensor, grad_bias: Tensor | None, grad: Tensor, x: Tensor) -> None:
    """Writes the gradients of a linear map's weight and bias."""
    torch.mm(grad.t(), x, out=grad_weight)
    if grad_bias is not None:
        torch.sum(grad, dim=0, out=grad_bias)
