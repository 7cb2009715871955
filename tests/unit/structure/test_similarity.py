"""Similarities in exact millionths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distmoe.errors import DataError
from distmoe.seed import generator
from distmoe.structure.cka import cka_matrix
from distmoe.structure.similarity import Similarity


def test_values_are_rounded_to_millionths_and_symmetric():
    similarity = Similarity.from_values([[1.0, 0.12345649, -0.5], [0.12345651, 1.0, 0.0], [-0.5, 0.0, 1.0]])
    assert similarity.millionths == ((1_000_000, 123_456, -500_000), (123_456, 1_000_000, 0), (-500_000, 0, 1_000_000))
    assert similarity.to_json()[0] == [1.0, 0.123456, -0.5]


def test_noise_below_half_a_millionth_leaves_the_value_equal():
    values = torch.rand(4, 4, generator=generator(0, "s"), dtype=torch.float64).mul(1e6).round().div(1e6)
    values = (values + values.T) / 2
    values = values.mul(1e6).round().div(1e6)
    assert (
        Similarity.from_values(values) == Similarity.from_values(values + 4e-7) == Similarity.from_values(values - 4e-7)
    )


def test_features_give_their_cka_in_double_precision():
    stream = generator(0, "f")
    features = torch.randn(4, 64, 6, generator=stream) + torch.randn(1, 64, 6, generator=stream)
    np.testing.assert_allclose(Similarity.from_features(features).values(), cka_matrix(features.double()), atol=5.1e-7)


def test_two_identical_layers_have_similarity_one():
    features = torch.randn(1, 40, 6, generator=generator(1, "f"))
    similarity = Similarity.from_features(torch.cat([features, features]))
    assert similarity.millionths == ((1_000_000, 1_000_000), (1_000_000, 1_000_000))


def test_means_within_a_set_by_hand():
    """Pairs 01: 0.9, 02: 0.6, 12: 0.3: mean 0.6."""
    similarity = Similarity.from_values([[1, 0.9, 0.6], [0.9, 1, 0.3], [0.6, 0.3, 1]])
    assert similarity.pairs_total((0, 1, 2)) == 1_800_000
    assert similarity.mean_within((0, 1, 2)) == pytest.approx(0.6, abs=1e-15)
    assert similarity.mean_within((1,)) == 0.0


def test_fewer_than_two_tasks_are_refused():
    with pytest.raises(DataError, match=r"got: +1 task\(s\)\n +expected: two or more"):
        Similarity.from_values([[1.0]])


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="not finite"):
        Similarity.from_values([[1.0, float("nan")], [float("nan"), 1.0]])


def test_a_matrix_that_is_not_symmetric_is_refused():
    with pytest.raises(DataError, match="square and symmetric"):
        Similarity(((1, 2), (3, 1)))
