"""Permuted copies are found again, exactly.

Shape letters: D model width, F hidden units, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distmoe.seed import generator
from distmoe.structure.alignment import align, best_permutation, weight_scores
from distmoe.structure.feed_forward_tensors import FeedForwardTensors
from distmoe.structure.merging import shares_of, weighted_mean
from distmoe.structure.pools import align_pools, permute_pool

D, UNITS, TOKENS = 12, 48, 64


def feed_forward(gated: bool, key: int = 0) -> FeedForwardTensors:
    stream = generator(key, "test")

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream)

    if gated:
        return FeedForwardTensors(normal(2 * UNITS, D), None, normal(D, UNITS), None)
    return FeedForwardTensors(normal(UNITS, D), normal(UNITS), normal(D, UNITS), normal(D))


def hidden(tensors: FeedForwardTensors, x: Tensor) -> Tensor:
    before = F.linear(x, tensors.w_in_HD, tensors.b_in_H)
    if not tensors.is_gated:
        return F.gelu(before)
    gate, up = before.chunk(2, dim=-1)
    return F.silu(gate) * up


def outputs(tensors: FeedForwardTensors, x: Tensor) -> Tensor:
    return F.linear(hidden(tensors, x), tensors.w_out_DF, tensors.b_out_D)


INPUTS = torch.randn(TOKENS, D, generator=generator(0, "inputs"))
SHUFFLE = torch.randperm(UNITS, generator=generator(0, "shuffle"))


@pytest.mark.parametrize("gated", [False, True])
def test_permuting_hidden_units_leaves_the_function_as_it_is(gated: bool):
    tensors = feed_forward(gated)
    torch.testing.assert_close(
        outputs(tensors.permuted(SHUFFLE), INPUTS), outputs(tensors, INPUTS), atol=1e-4, rtol=1e-5
    )
    assert not torch.equal(tensors.permuted(SHUFFLE).w_in_HD, tensors.w_in_HD)


@pytest.mark.parametrize("gated", [False, True])
def test_a_permuted_copy_merges_to_the_same_function_after_alignment_and_to_another_without(gated: bool):
    original = feed_forward(gated)
    copy = original.permuted(SHUFFLE)
    members = [{key: own[None] for key, own in part.by_name().items()} for part in (original, copy)]
    permutations_eF = align_pools(members)
    assert torch.equal(SHUFFLE[permutations_eF[1][0]], torch.arange(UNITS))
    aligned = merged([permute_pool(own, order) for own, order in zip(members, permutations_eF, strict=True)])
    assert (outputs(aligned, INPUTS) - outputs(original, INPUTS)).abs().max() <= 1e-5
    assert (outputs(merged(members), INPUTS) - outputs(original, INPUTS)).abs().max() > 1.0


def merged(members: Sequence[dict[str, Tensor]]) -> FeedForwardTensors:
    half = shares_of([1, 1])
    return FeedForwardTensors.of({key: weighted_mean([own[key] for own in members], half) for key in members[0]}, 0)


def test_noise_below_the_difference_between_units_does_not_hide_the_permutation():
    original = feed_forward(False)
    noise = feed_forward(False, key=1)
    copy = original.permuted(SHUFFLE)
    noisy = FeedForwardTensors(
        copy.w_in_HD + 0.3 * noise.w_in_HD, copy.b_in_H, copy.w_out_DF + 0.3 * noise.w_out_DF, copy.b_out_D
    )
    assert torch.equal(SHUFFLE[align(original, noisy)], torch.arange(UNITS))


def test_the_assignment_is_the_best_of_all_permutations():
    for key in range(10):
        scores = torch.randn(5, 5, generator=generator(key), dtype=torch.float64)
        best = max(permutations(range(5)), key=lambda order: sum(scores[i, j].item() for i, j in enumerate(order)))
        assert best_permutation(scores).tolist() == list(best)


def test_a_gain_below_rounding_is_no_reason_to_permute():
    scores = torch.ones(6, 6, dtype=torch.float64) + 1e-13 * torch.eye(6, dtype=torch.float64).flip(0)
    assert best_permutation(scores).tolist() == list(range(6))
    assert best_permutation(scores + 1e-3 * torch.eye(6).flip(0)).tolist() == [5, 4, 3, 2, 1, 0]


def test_equal_units_stay_in_place():
    assert best_permutation(torch.ones(6, 6)).tolist() == list(range(6))
    tensors = FeedForwardTensors(torch.ones(4, 3), torch.zeros(4), torch.ones(3, 4), torch.zeros(3))
    assert align(tensors, tensors).tolist() == [0, 1, 2, 3]


def test_layers_that_started_as_copies_keep_their_order_after_different_training():
    """With an identical start the best permutation is the identity."""
    start, first, second = (feed_forward(False, key) for key in range(3))

    def trained(step: FeedForwardTensors) -> FeedForwardTensors:
        return FeedForwardTensors(
            start.w_in_HD + 0.2 * step.w_in_HD, start.b_in_H, start.w_out_DF + 0.2 * step.w_out_DF, start.b_out_D
        )

    assert torch.equal(align(trained(first), trained(second)), torch.arange(UNITS))


def test_maximal_weight_scores_mean_minimal_distance_of_weights():
    a, b = feed_forward(True, 0), feed_forward(True, 1)

    def distance(permutation: Tensor) -> float:
        moved = b.permuted(permutation)
        return ((a.w_in_HD - moved.w_in_HD).square().sum() + (a.w_out_DF - moved.w_out_DF).square().sum()).item()

    best = align(a, b)
    others = [torch.randperm(UNITS, generator=generator(key)) for key in range(50)]
    assert all(distance(best) < distance(other) for other in others)


def test_weight_scores_of_a_copy_average_to_one_on_the_diagonal():
    scores = weight_scores(feed_forward(False), feed_forward(False))
    assert scores.diagonal().mean().item() == pytest.approx(1.0, abs=1e-12)


def test_stacked_experts_are_picked_by_index():
    stacked = {"w_in": torch.randn(3, UNITS, D), "b_in": None, "w_out": torch.randn(3, D, UNITS), "b_out": None}
    one = FeedForwardTensors.of(stacked, 2)
    assert torch.equal(one.w_out_DF, stacked["w_out"][2])
    assert list(one.by_name()) == ["w_in", "w_out"]
