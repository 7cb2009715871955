"""The linear layer that comes closest to each member on that member's own inputs (RegMean, arXiv 2212.09849).

``W = argmin_W sum_k |X_k (W - W_k)^T|^2``, from Gram matrices ``X_k^T X_k`` only. It differs from the plain mean just
where the members see different inputs; with equal inputs it *is* the plain mean.

Shape letters: O outputs, C inputs (with a bias, one more: the constant 1), N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distmoe.structure.feed_forward_tensors import FeedForwardTensors
from distmoe.structure.merging import shares_of, weighted_mean

RIDGE = 1e-6


@dataclass(frozen=True)
class Grams:
    """What one feed-forward part saw, as :func:`input_gram` sums it up.

    Attributes:
        inputs: Of its inputs.
        hidden: Of its hidden activations.
    """

    inputs: Tensor
    hidden: Tensor

    def permuted(self, permutation_F: Tensor) -> Grams:
        """With hidden units in another order; the constant of a bias stays last."""
        rest = torch.arange(len(permutation_F), len(self.hidden))
        order = torch.cat([permutation_F.cpu(), rest])
        return Grams(self.inputs, self.hidden[order][:, order])


def input_gram(x_NC: Tensor, *, bias: bool) -> Tensor:
    """``X^T X`` in float64, with a constant input for the bias if there is one. Additive over batches and ranks."""
    x_NC = x_NC.double()
    if bias:
        x_NC = torch.cat([x_NC, x_NC.new_ones(len(x_NC), 1)], dim=1)
    return x_NC.T @ x_NC


def least_squares(weights_OC: Sequence[Tensor], grams_CC: Sequence[Tensor], *, ridge: float = RIDGE) -> Tensor:
    """The merged weights ``[O, C]`` in the dtype of the first.

    Args:
        weights_OC: Weights of each member.
        grams_CC: Gram matrix of each member's inputs; more tokens weigh more.
        ridge: Pull towards the plain mean, relative to the mean squared input. It decides only in directions that no
            member's inputs have. Larger: closer to the mean, better conditioned.
    """
    mean_OC = weighted_mean([weight.double() for weight in weights_OC], shares_of([1] * len(weights_OC)))
    total_CC = torch.stack([gram.double() for gram in grams_CC]).sum(dim=0)
    damping = ridge * total_CC.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    total_CC = total_CC + damping * torch.eye(len(total_CC), dtype=torch.float64, device=total_CC.device)
    pull_CO = torch.zeros_like(mean_OC.T)
    for weight, gram in zip(weights_OC, grams_CC, strict=True):
        pull_CO = pull_CO + gram.double() @ (weight.double() - mean_OC).T
    correction_CO = torch.cholesky_solve(pull_CO, torch.linalg.cholesky(total_CC))
    return (mean_OC + correction_CO.T).to(weights_OC[0].dtype)


def merge_feed_forward_least_squares(
    members: Sequence[FeedForwardTensors],
    grams: Sequence[Grams],
    *,
    ridge: float = RIDGE,
) -> FeedForwardTensors:
    """Merges aligned members layer by layer.

    Args:
        members: Weights of each member, hidden units already permuted.
        grams: Of each member on its own tasks' data, hidden units in the permuted order too.
        ridge: See :func:`least_squares`.
    """
    inputs, hidden = [own.inputs for own in grams], [own.hidden for own in grams]
    w_in, b_in = _merge_affine([(member.w_in_HD, member.b_in_H) for member in members], inputs, ridge)
    w_out, b_out = _merge_affine([(member.w_out_DF, member.b_out_D) for member in members], hidden, ridge)
    return FeedForwardTensors(w_in, b_in, w_out, b_out)


def _merge_affine(
    pairs: Sequence[tuple[Tensor, Tensor | None]], grams: Sequence[Tensor], ridge: float
) -> tuple[Tensor, Tensor | None]:
    joined = [weight if bias is None else torch.cat([weight, bias.unsqueeze(1)], dim=1) for weight, bias in pairs]
    merged = least_squares(joined, grams, ridge=ridge)
    return (merged, None) if pairs[0][1] is None else (merged[:, :-1].contiguous(), merged[:, -1].contiguous())
