"""One set of weights out of several.

All arithmetic is in float64 on the float32 master weights, in the order of the members, and rounded once at the end:
every rank that computes a merge gets the same bits. Members are aligned first (:mod:`distmoe.structure.alignment`).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor


def shares_of(loads: Sequence[int]) -> tuple[float, ...]:
    """Weights proportional to the members' tokens; they sum to 1 (M-SMoE's usage weighting, arXiv 2310.01334)."""
    return tuple(float(Fraction(load, sum(loads))) for load in loads)


def weighted_mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """``sum_k shares_k W_k`` in the dtype of the first tensor.

    Written as the first tensor plus weighted differences: equal tensors give back exactly their common value.
    """
    first = tensors[0].double()
    total = first.clone()
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        total += share * (tensor.double() - first)
    return total.to(tensors[0].dtype)
