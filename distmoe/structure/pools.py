"""Alignment of whole pools: several feed-forward parts stacked along the first axis, as a task group owns them.

Expert i of a joined task group is made of expert i of each member. A structural phase that merges pools does::

    permutations = align_pools(weights)                                     # weights: one mapping per member
    aligned = [permute_pool(own, p) for own, p in zip(weights, permutations)]
    merged = {key: weighted_mean([own[key] for own in aligned], shares) for key in aligned[0]}

and permutes both Adam moments of each member in the same way before it merges them.

Shape letters: e experts of the pool, F hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distmoe.structure.alignment import align
from distmoe.structure.feed_forward_tensors import FeedForwardTensors


def align_pools(
    members: Sequence[Mapping[str, Tensor]], activations: Sequence[Sequence[Tensor]] | None = None
) -> list[Tensor]:
    """Permutations of hidden units that bring each member to the order of the first, ``[e, F]`` per member.

    Args:
        members: Stacked ``w_in, b_in, w_out, b_out`` of each member, biases only where there are some.
        activations: Hidden activations ``[N, F]`` per member and expert, on the same tokens; None: weights alone.
    """
    num_pooled = len(members[0]["w_in"])
    result = []
    for index, member in enumerate(members):
        rows = []
        for pooled in range(num_pooled):
            pair = None if activations is None else (activations[0][pooled], activations[index][pooled])
            rows.append(align(FeedForwardTensors.of(members[0], pooled), FeedForwardTensors.of(member, pooled), pair))
        result.append(torch.stack(rows))
    return result


def permute_pool(tensors: Mapping[str, Tensor], permutations_eF: Tensor) -> dict[str, Tensor]:
    """The pool with the hidden units of each expert reordered: weights, or either of Adam's moments."""
    permuted = [
        FeedForwardTensors.of(tensors, index).permuted(permutation_F).by_name()
        for index, permutation_F in enumerate(permutations_eF)
    ]
    return {key: torch.stack([own[key] for own in permuted]) for key in permuted[0]}
