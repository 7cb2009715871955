"""Combine weights against a table worked by hand.

Chosen probabilities of one token: .5 and .3 (the rest of the mass, .2, is on experts that were not chosen).
"""

from __future__ import annotations

import pytest
import torch

from distmoe.moe.gates.combine import combine_weights

CHOSEN = torch.tensor([[0.5, 0.3]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("rule", "weights", "gradient"),
    [
        ("raw", [0.5, 0.3], [1.0, 0.0]),
        # w1 = p1 / (p1 + p2): dw1/dp1 = p2 / .64, dw1/dp2 = -p1 / .64
        ("renorm", [0.5 / 0.8, 0.3 / 0.8], [0.3 / 0.64, -0.5 / 0.64]),
        ("straight_through", [0.5, 0.5], [1.0, 0.0]),
    ],
)
def test_weights_and_gradient_of_the_first_weight(rule, weights, gradient):
    chosen_TK = CHOSEN.clone().requires_grad_()
    weights_TK = combine_weights(chosen_TK, rule=rule)
    weights_TK[0, 0].backward()
    torch.testing.assert_close(weights_TK, torch.tensor([weights], dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(chosen_TK.grad, torch.tensor([gradient], dtype=torch.float64), rtol=0, atol=1e-15)


def test_straight_through_weights_are_one_over_k_without_rounding():
    chosen_TK = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
    assert (combine_weights(chosen_TK, rule="straight_through") == torch.tensor(1 / 3)).all()


def test_renorm_of_one_expert_is_one_with_gradient_exactly_zero():
    chosen_TK = torch.rand(1000, 1, generator=torch.Generator().manual_seed(0)).add(0.1).requires_grad_()
    weights_TK = combine_weights(chosen_TK, rule="renorm")
    (weights_TK * torch.randn(1000, 1)).sum().backward()
    assert (weights_TK == 1).all()
    assert (chosen_TK.grad == 0).all()
