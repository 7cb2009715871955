import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmoe.data.config import SamplingConfig
from distmoe.data.sampling.mixture import deal_in_turn, draw_tasks, mixture_weights
from distmoe.errors import ConfigError


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("size_proportional", [1 / 21, 4 / 21, 16 / 21]),
        ("temperature", [1 / 7, 2 / 7, 4 / 7]),  # square roots of 1, 4, 16
        ("uniform", [1 / 3] * 3),
        ("round_robin", [1 / 3] * 3),
    ],
)
def test_shares_by_hand(strategy, expected):
    weights = mixture_weights([100, 400, 1600], SamplingConfig(strategy=strategy, temperature=2.0), names="abc")
    assert weights == pytest.approx(expected)


def test_a_task_that_is_not_trained_has_no_share():
    """Square roots of 100 and 1600 are 10 and 40."""
    config = SamplingConfig(strategy="temperature", temperature=2.0, tasks=["a", "c"])
    assert mixture_weights([100, 400, 1600], config, names="abc") == pytest.approx([0.2, 0, 0.8])


def test_a_trained_task_must_exist():
    with pytest.raises(ConfigError, match=r"data.sampling.tasks names(.|\n)*got:      z\n  expected: a \| b"):
        mixture_weights([1, 1], SamplingConfig(tasks=["a", "z"]), names="ab")


def test_temperature_goes_from_size_proportional_to_uniform():
    def weights(temperature):
        return mixture_weights([10, 1000], SamplingConfig(strategy="temperature", temperature=temperature), names="ab")

    assert weights(1.0) == pytest.approx([10 / 1010, 1000 / 1010])
    assert weights(1e6) == pytest.approx([0.5, 0.5], abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=6).filter(lambda shares: sum(shares) > 0.1), st.integers(1, 50))
def test_a_task_is_drawn_its_share_rounded_up_or_down(shares, count):
    drawn = np.bincount(draw_tasks(shares, count, np.random.default_rng(0)), minlength=len(shares))
    exact = np.array(shares) / sum(shares) * count
    assert drawn.sum() == count
    assert np.all(np.abs(drawn - exact) < 1 + 1e-6)
    assert not drawn[np.array(shares) == 0].any()


def test_the_expected_draws_are_exactly_the_shares():
    """Averages over a fine grid of all offsets: systematic sampling is unbiased also for a share below one draw."""

    class Offset:
        def __init__(self, value):
            self.value = value

        def random(self):
            return self.value

        def permutation(self, drawn):
            return drawn

    shares, count, grid = [0.03, 0.27, 0.7], 10, 1000
    total = sum(
        np.bincount(draw_tasks(shares, count, Offset((i + 0.5) / grid)), minlength=3)  # type: ignore[arg-type]
        for i in range(grid)
    )
    np.testing.assert_allclose(total / grid, np.array(shares) * count, rtol=1e-12)


def test_turns_go_on_where_they_ended():
    assert deal_in_turn(3, 4, 0).tolist() == [0, 1, 2, 0]
    assert deal_in_turn(3, 3, 4).tolist() == [1, 2, 0]
