"""Which hidden unit of one feed-forward part plays the role of which unit of another.

Averages are only taken between units that do the same. The best permutation maximises a sum of scores over matched
pairs: a linear assignment, solved exactly (scipy). Scores come from the weights (as in MC-SMoE, arXiv 2310.01334).

Shape letters: D model width, F hidden units.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from distmoe.structure.feed_forward_tensors import FeedForwardTensors

# Relative gain below which a permutation is noise: float64 sums over thousands of units differ by about this much.
_MIN_GAIN = 1e-9


def weight_scores(reference: FeedForwardTensors, other: FeedForwardTensors) -> Tensor:
    """Inner products of each unit's incoming and outgoing weights, ``[F, F]`` float64, at most about 1 on average.

    Maximising their sum minimises the distance ``|W - P W'|^2`` of all weights.
    """
    first_FC, second_FC = _unit_weights(reference), _unit_weights(other)
    scale = (first_FC.norm() * second_FC.norm()).clamp_min(torch.finfo(torch.float64).tiny)
    return first_FC @ second_FC.T * (reference.num_units / scale)


def best_permutation(scores_FF: Tensor) -> Tensor:
    """The permutation that maximises ``sum_i scores[i, permutation[i]]``, int64 ``[F]``.

    The identity wins ties: layers that started as copies keep the order of their units, and equal units stay put.
    """
    scores = scores_FF.double().cpu()
    rows, columns = linear_sum_assignment(scores.numpy(), maximize=True)
    best, identity = scores[rows, columns].sum(), scores.trace()
    if best - identity <= _MIN_GAIN * scores.abs().max() * len(scores):
        return torch.arange(len(scores), device=scores_FF.device)
    return torch.from_numpy(columns).to(scores_FF.device)


def align(reference: FeedForwardTensors, other: FeedForwardTensors) -> Tensor:
    """The permutation to apply to ``other`` before it is averaged with ``reference``, int64 ``[F]``.

    Args:
        reference: Stays as it is.
        other: Of the same shapes.
    """
    return best_permutation(weight_scores(reference, other))


def _unit_weights(tensors: FeedForwardTensors) -> Tensor:
    """All weights of each hidden unit in one row, ``[F, C]`` float64."""
    columns = [part.double() for part in tensors.w_in_HD.split(tensors.num_units)]
    if tensors.b_in_H is not None:
        columns += [part.double().unsqueeze(1) for part in tensors.b_in_H.split(tensors.num_units)]
    return torch.cat([*columns, tensors.w_out_DF.double().T], dim=1)
