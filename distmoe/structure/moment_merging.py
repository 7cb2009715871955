"""Adam's moments of a merged layer: means add, variances add.

The merged layer's gradient is the sum of its members' gradients, so the mean of the sum is the sum of the means, and
for independent mini-batches the variance of the sum is the sum of the variances. The second moment is mean squared
plus variance. Both hold for unbiased estimates, so Adam's start-up bias is taken out first and put back afterwards:
without that the update is off by 60 % at step 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distmoe.structure.merging import shares_of, weighted_mean


@dataclass(frozen=True)
class AdamMoments:
    """Adam's state of one tensor, as the optimizer stores it (not bias-corrected).

    Attributes:
        mean: ``exp_avg``.
        square: ``exp_avg_sq``.
    """

    mean: Tensor
    square: Tensor


def sum_moments(members: Sequence[AdamMoments], *, step: int, betas: tuple[float, float]) -> AdamMoments:
    """Moments of the sum of the members' gradients, in the dtype of the first.

    ``m = sum m_k``; ``v = sum max(v_k - m_k^2, 0) + m^2``, both on bias-corrected moments. Exact for constant
    gradients, right on average for members with mini-batches of their own. Where members share their noise, because
    all see the same examples, v comes out too small by up to the number of members.

    Args:
        members: Moments of each member, hidden units already permuted.
        step: Optimizer steps taken, equal for all members; it stays the run's.
        betas: Adam's.
    """
    if step == 0:  # nothing was estimated yet
        return AdamMoments(torch.zeros_like(members[0].mean), torch.zeros_like(members[0].square))
    mean_correction, square_correction = (1.0 - beta**step for beta in betas)
    mean = torch.zeros_like(members[0].mean, dtype=torch.float64)
    variance = torch.zeros_like(mean)
    for member in members:
        own = member.mean.double() / mean_correction
        mean += own
        variance += (member.square.double() / square_correction - own.square()).clamp_min(0.0)
    square = variance + mean.square()
    return AdamMoments(
        (mean * mean_correction).to(members[0].mean.dtype), (square * square_correction).to(members[0].square.dtype)
    )


def mean_moments(members: Sequence[AdamMoments]) -> AdamMoments:
    """The plain mean of both moments (mode ``paper``): as if the members' losses were averaged, which they are not."""
    shares = shares_of([1] * len(members))
    return AdamMoments(
        weighted_mean([member.mean for member in members], shares),
        weighted_mean([member.square for member in members], shares),
    )
