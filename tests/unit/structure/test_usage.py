"""Similarity of tasks that share every layer: covariances of their own examples, without bias."""

from __future__ import annotations

import pytest
import torch

from distmoe.errors import DataError
from distmoe.structure.usage import usage_similarity


def draw(num_examples: int, scales: list[float], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_examples, len(scales), generator=generator, dtype=torch.float64) * torch.tensor(scales)


def test_value_worked_by_hand() -> None:
    """Population covariances diag(4, 1) and diag(1, 4): <C, C'> = 8, |C|^2 = 17."""
    first, second = draw(4000, [2.0, 1.0], 0), draw(4000, [1.0, 2.0], 1)
    assert usage_similarity([first, second])[0, 1].item() == pytest.approx(8 / 17, abs=0.03)


def test_the_diagonal_is_one_and_the_matrix_symmetric() -> None:
    values = usage_similarity([draw(30, [1.0, 2.0, 3.0], seed) for seed in range(3)])
    assert torch.equal(values, values.T)
    assert torch.equal(values.diagonal(), torch.ones(3, dtype=torch.float64))


def test_samples_of_one_distribution_are_alike_however_few() -> None:
    """40 examples of width 64: with biased norms the mean would be near 0.4 (trace terms of 64/40)."""
    pairs = [usage_similarity([draw(40, [1.0] * 64, 2 * s), draw(40, [1.0] * 64, 2 * s + 1)])[0, 1] for s in range(8)]
    assert torch.stack(pairs).mean().item() > 0.9


def test_disjoint_directions_are_unrelated() -> None:
    first, second = draw(500, [1.0] * 4 + [0.0] * 4, 0), draw(500, [0.0] * 4 + [1.0] * 4, 1)
    assert usage_similarity([first, second])[0, 1].item() == 0.0


def test_shift_and_scale_do_not_matter() -> None:
    first, second = draw(50, [1.0, 2.0, 0.5], 0), draw(60, [2.0, 1.0, 1.0], 1)
    plain = usage_similarity([first, second])
    torch.testing.assert_close(usage_similarity([3 * first + 7, second - 5]), plain, rtol=0, atol=1e-10)


def test_three_examples_are_refused() -> None:
    with pytest.raises(DataError, match="unbiased similarity needs more examples"):
        usage_similarity([draw(50, [1.0], 0), draw(3, [1.0], 1)])
