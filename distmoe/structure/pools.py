"""Alignment of whole pools: several feed-forward parts stacked along the first axis, as a task group owns them.

A structural phase that merges experts does, with pools of one expert each::

    permutations = align_pools(weights)                                     # weights: one mapping per member
    aligned = [permute_pool(own, p) for own, p in zip(weights, permutations)]
    merged = {key: weighted_mean([own[key] for own in aligned], shares) for key in aligned[0]}

and permutes both Adam moments of each member in the same way before it merges them. One that pools them keeps all, and
asks :func:`similar_experts` only where there would be too many.

Shape letters: e experts of the pool, F hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from distmoe.structure.alignment import align
from distmoe.structure.feed_forward_tensors import FeedForwardTensors


def align_pools(members: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """Permutations of hidden units that bring each member to the order of the first, ``[e, F]`` per member.

    Args:
        members: Stacked ``w_in, b_in, w_out, b_out`` of each member, biases only where there are some.
    """
    first = [FeedForwardTensors.of(members[0], index) for index in range(len(members[0]["w_in"]))]
    return [
        torch.stack([align(own, FeedForwardTensors.of(member, index)) for index, own in enumerate(first)])
        for member in members
    ]


def permute_pool(tensors: Mapping[str, Tensor], permutations_eF: Tensor) -> dict[str, Tensor]:
    """The pool with the hidden units of each expert reordered: weights, or either of Adam's moments."""
    permuted = [
        FeedForwardTensors.of(tensors, index).permuted(permutation_F).by_name()
        for index, permutation_F in enumerate(permutations_eF)
    ]
    return {key: torch.stack([own[key] for own in permuted]) for key in permuted[0]}


def similar_experts(pool: Mapping[str, Tensor], count: int) -> tuple[tuple[int, ...], ...]:
    """Which experts of a pool to merge so that ``count`` are left: average linkage on the distance of their weights.

    Hidden units are brought to the order of the first expert before distances are taken (as HC-SMoE does with outputs,
    arXiv 2410.08589; weights need no data). Ties go to the lowest experts.

    Args:
        pool: Stacked ``w_in, b_in, w_out, b_out``.
        count: Experts that are to be left, at most as many as there are.

    Returns:
        Disjoint sets of experts in order of their smallest.
    """
    size = len(pool["w_in"])
    assert 0 < count <= size, f"{count} of {size} experts"
    first = FeedForwardTensors.of(pool, 0)
    rows = []
    for index in range(size):
        own = FeedForwardTensors.of(pool, index)
        aligned = own.permuted(align(first, own)).by_name()
        rows.append(torch.cat([tensor.double().flatten() for tensor in aligned.values()]))
    distances = torch.cdist(torch.stack(rows), torch.stack(rows)).tolist()

    def linkage(pair: tuple[tuple[int, ...], tuple[int, ...]]) -> float:
        one, other = pair
        return sum(distances[i][j] for i in one for j in other) / (len(one) * len(other))

    sets: list[tuple[int, ...]] = [(index,) for index in range(size)]
    while len(sets) > count:
        one, other = min(combinations(sets, 2), key=linkage)
        sets = sorted([*(own for own in sets if own not in (one, other)), tuple(sorted(one + other))])
    return tuple(sets)
