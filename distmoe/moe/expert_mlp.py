"""The feed-forward parts of all experts of a pool as one differentiable function of rows sorted by expert.

``y[r] = act(x[r] W_in^T + b_in) W_out^T + b_out`` with the tensors of row r's expert.

One function with its own backward instead of a chain of autograd nodes, for two reasons: besides its input it saves the
hidden layer before the activation and nothing else; and it saves the *parameters* themselves, not views of them, so
that an optimizer that frees and regathers parameters (ZeRO-3) works with it.

Shape letters: R rows sorted by expert, D model width, H hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distmoe.moe import expert_grouped, expert_loop
from distmoe.moe.activations import Activation
from distmoe.moe.expert_weights import ExpertWeights
from distmoe.moe.segments import Segments


def expert_mlp(x_RD: Tensor, weights: ExpertWeights, *, segments: Segments, activation: Activation) -> Tensor:
    """Every row through its expert, ``[R, D]``. Zero rows, and experts without rows, give zero gradients, not none.

    Args:
        x_RD: Rows in the dtype of the weights.
        weights: Stacked tensors.
        segments: Which rows belong to which expert; says also whether the loop or the grouped matmul is used.
        activation: Between the two linear maps.
    """
    return _ExpertMlp.apply(x_RD, *weights, segments, activation)


class _ExpertMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RD: Tensor,
        w_in: Tensor,
        b_in: Tensor | None,
        w_out: Tensor,
        b_out: Tensor | None,
        segments: Segments,
        activation: Activation,
    ) -> Tensor:
        weights = ExpertWeights(w_in, b_in, w_out, b_out)
        ctx.segments, ctx.activation = segments, activation
        if segments.num_rows == 0:
            y_RD, h_RH = x_RD.new_empty(0, w_out.shape[1]), x_RD.new_empty(0, w_in.shape[1])
        else:
            x_RD = x_RD.contiguous()
            y_RD, h_RH = _implementation(segments).forward(x_RD, weights, segments, activation)
        ctx.save_for_backward(x_RD, h_RH, *weights)
        return y_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, h_RH, *tensors = ctx.saved_tensors
        weights, segments = ExpertWeights(*tensors), ctx.segments
        if segments.num_rows == 0:
            return torch.zeros_like(x_RD), *weights.zeros_like(), None, None
        # Expanded gradients, such as those of y.sum(), are refused by grouped_mm.
        grad_RD = grad_RD.contiguous()
        grad_x_RD, grads = _implementation(segments).backward(grad_RD, x_RD, h_RH, weights, segments, ctx.activation)
        return grad_x_RD, *grads, None, None


def _implementation(segments: Segments) -> Any:
    return expert_grouped if segments.host_counts is None else expert_loop
