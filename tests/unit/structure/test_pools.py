"""Whole pools are aligned expert by expert, and their moments follow.

Shape letters: D model width, F hidden units.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distmoe.seed import generator
from distmoe.structure.merging import weighted_mean
from distmoe.structure.moment_merging import AdamMoments, sum_moments
from distmoe.structure.pools import align_pools, permute_pool

POOLED, D, UNITS = 3, 5, 12


def pool(gated: bool) -> dict[str, Tensor]:
    stream = generator(0, "pool")
    if gated:
        shapes = {"w_in": (2 * UNITS, D), "w_out": (D, UNITS)}
    else:
        shapes = {"w_in": (UNITS, D), "b_in": (UNITS,), "w_out": (D, UNITS), "b_out": (D,)}
    return {key: torch.randn(POOLED, *shape, generator=stream) for key, shape in shapes.items()}


SHUFFLES = torch.stack([torch.randperm(UNITS, generator=generator(0, "shuffle", index)) for index in range(POOLED)])


@pytest.mark.parametrize("gated", [False, True])
def test_a_pool_with_shuffled_units_merges_to_exactly_the_original(gated: bool):
    original = pool(gated)
    shuffled = permute_pool(original, SHUFFLES)
    permutations = align_pools([original, shuffled])
    aligned = [permute_pool(own, order) for own, order in zip([original, shuffled], permutations, strict=True)]
    assert list(aligned[1]) == list(original)
    for key, tensor in original.items():
        assert torch.equal(weighted_mean([own[key] for own in aligned], (0.3, 0.7)), tensor)
    assert not torch.equal(shuffled["w_in"], original["w_in"])


def test_moments_are_permuted_like_their_weights():
    """Equal members: both means double, and with one step's bias taken out v is the square of the summed gradient."""
    gradient = pool(False)
    step, betas = 1, (0.9, 0.999)
    moments = {key: AdamMoments(0.1 * g, 0.001 * g.square()) for key, g in gradient.items()}
    shuffled = permute_pool({key: own.mean for key, own in moments.items()}, SHUFFLES)
    squares = permute_pool({key: own.square for key, own in moments.items()}, SHUFFLES)
    back = align_pools([gradient, permute_pool(gradient, SHUFFLES)])[1]
    shuffled, squares = permute_pool(shuffled, back), permute_pool(squares, back)
    for key, own in moments.items():
        merged = sum_moments([own, AdamMoments(shuffled[key], squares[key])], step=step, betas=betas)
        torch.testing.assert_close(merged.mean, 0.2 * gradient[key])
        torch.testing.assert_close(merged.square, 0.001 * (2 * gradient[key]).square())
