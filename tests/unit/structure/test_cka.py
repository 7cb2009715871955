"""Unbiased linear CKA, Gram form: invariances, no bias, a term that trains.

Shape letters: T feature sets, N examples, D width.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distmoe.errors import DataError
from distmoe.seed import generator
from distmoe.structure.cka import alignment_loss, cka_matrix


def normal(*shape: int, key: object = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "test", key), dtype=torch.float64)


def unbiased_cka(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    """Of one pair."""
    return cka_matrix(torch.stack([x_ND, y_ND]))[0, 1]


def biased_cka(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    """The usual estimator, with the diagonal: what must not be used."""
    x_ND, y_ND = x_ND - x_ND.mean(0), y_ND - y_ND.mean(0)
    return (x_ND.T @ y_ND).square().sum() / ((x_ND.T @ x_ND).norm() * (y_ND.T @ y_ND).norm())


def looped_hsic(x_ND: Tensor, y_ND: Tensor) -> float:
    """Unbiased HSIC as printed by Song et al. 2012, eq. 5, in plain numbers."""
    n = len(x_ND)
    k = [[0.0 if i == j else float(x_ND[i] @ x_ND[j]) for j in range(n)] for i in range(n)]
    m = [[0.0 if i == j else float(y_ND[i] @ y_ND[j]) for j in range(n)] for i in range(n)]
    trace = sum(k[i][j] * m[j][i] for i in range(n) for j in range(n))
    sums = sum(map(sum, k)) * sum(map(sum, m)) / ((n - 1) * (n - 2))
    rows = sum(sum(k[i]) * sum(m[i]) for i in range(n)) * 2 / (n - 2)
    return (trace + sums - rows) / (n * (n - 3))


def test_it_is_the_published_estimator():
    x, y = normal(9, 5, key=1), normal(9, 5, key=2)
    y[:, :3] += x[:, :3]
    expected = looped_hsic(x, y) / (looped_hsic(x, x) * looped_hsic(y, y)) ** 0.5
    assert unbiased_cka(x, y).item() == pytest.approx(expected, abs=1e-12)


def test_a_feature_set_is_similar_to_itself_by_exactly_one():
    assert unbiased_cka(normal(50, 7), normal(50, 7)).item() == pytest.approx(1.0, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_permutation_rotation_scale_and_shift_change_nothing(key: int, scale: float, shift: float):
    x, y = normal(30, 6, key=key), normal(30, 6, key=key + 1)
    y = y + x
    order = torch.randperm(30, generator=generator(key))
    rotation, _ = torch.linalg.qr(normal(6, 6, key=key + 2))
    expected = unbiased_cka(x, y)
    for changed in (unbiased_cka(x[order], y[order]), unbiased_cka(x, scale * (y @ rotation) + shift)):
        assert changed.item() == pytest.approx(expected.item(), abs=1e-10)


def test_independent_features_are_not_similar_although_the_biased_estimator_says_so():
    """n = 800, d = 512. Derivation of the biased value: about d / (n + d) = 0.39."""
    x, y = normal(800, 512, key="x"), normal(800, 512, key="y")
    assert abs(unbiased_cka(x, y).item()) < 0.01
    assert biased_cka(x, y).item() == pytest.approx(0.39, abs=0.005)


def test_sixteen_examples_of_width_512_fool_the_biased_estimator_completely():
    values = [(normal(16, 512, key=("x", i)), normal(16, 512, key=("y", i))) for i in range(20)]
    assert sum(biased_cka(x, y).item() for x, y in values) / 20 == pytest.approx(0.967, abs=0.005)
    assert abs(sum(unbiased_cka(x, y).item() for x, y in values) / 20) < 0.1


def test_the_matrix_holds_the_value_of_every_pair():
    features = normal(3, 20, 4)
    features[1] += features[0]
    expected = [
        [looped_hsic(x, y) / abs(looped_hsic(x, x) * looped_hsic(y, y)) ** 0.5 for y in features] for x in features
    ]
    torch.testing.assert_close(cka_matrix(features), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


def test_features_that_never_vary_are_similar_to_nothing():
    features = torch.stack([normal(20, 4), torch.full((20, 4), 3.0, dtype=torch.float64)])
    torch.testing.assert_close(cka_matrix(features), torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64))


def test_half_precision_is_computed_in_single():
    features = normal(2, 20, 4).to(torch.bfloat16)
    assert cka_matrix(features).dtype == torch.float32


def test_the_training_term_pulls_feature_sets_together():
    features = normal(3, 64, 8).float().requires_grad_()
    first = alignment_loss(features)
    for _ in range(30):
        (gradient,) = torch.autograd.grad(alignment_loss(features), features)
        assert gradient.isfinite().all()
        features = (features - 30 * gradient).detach().requires_grad_()
    assert alignment_loss(features) < 0.5 * first


def test_the_training_term_of_equal_sets_is_zero_with_a_finite_gradient():
    features = normal(1, 64, 8).expand(3, 64, 8).clone().requires_grad_()
    loss = alignment_loss(features)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert features.grad.norm() < 1e-12


def test_a_layer_without_any_variation_does_not_spoil_the_gradient():
    features = torch.zeros(2, 8, 3, requires_grad=True)
    alignment_loss(features).backward()
    assert features.grad.isfinite().all()


def test_too_few_examples_or_tasks_are_refused():
    with pytest.raises(DataError, match=r"got: +3\n +expected: at least 4"):
        cka_matrix(normal(2, 3, 5))
    with pytest.raises(DataError, match="1 task"):
        alignment_loss(normal(1, 10, 5))
