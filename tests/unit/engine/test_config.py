from __future__ import annotations

import pytest

from distmoe.config import build
from distmoe.engine.config import OptimizerConfig
from distmoe.errors import ConfigError


@pytest.mark.parametrize("betas", [[0.9, 1.0], [-0.1, 0.9], [0.9, float("nan")], [0.9]])
def test_a_decay_rate_of_moments_lies_below_1(betas: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)'betas'.*numbers >= 0, < 1 of length >= 2, of length <= 2"):
        build(OptimizerConfig, {"betas": betas})
    assert build(OptimizerConfig, {"betas": [0.0, 0.999]}).betas == [0.0, 0.999]


def test_an_infinite_learning_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)'lr'.*got: +inf.*number > 0, finite"):
        build(OptimizerConfig, {"lr": float("inf")})
