"""Adam's moments of a merged layer against Adam run on the summed gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distmoe.seed import generator
from distmoe.structure.moment_merging import AdamMoments, mean_moments, sum_moments

BETAS = (0.9, 0.999)
SHAPE = (400,)


def adam(gradients: list[Tensor], betas: tuple[float, float] = BETAS) -> AdamMoments:
    """The moments that torch's Adam holds after these gradients."""
    weight = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = torch.optim.Adam([weight], betas=betas)
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()
    state = optimizer.state[weight]
    return AdamMoments(state["exp_avg"], state["exp_avg_sq"])


def noisy(members: int, steps: int, signal: float, dtype: torch.dtype = torch.float64) -> list[list[Tensor]]:
    """Gradients per member: a constant of its own plus independent unit noise."""
    stream = generator(0, "gradients", members, steps)
    constant = signal * torch.randn(members, *SHAPE, generator=stream, dtype=dtype)
    return [
        [constant[k] + torch.randn(SHAPE, generator=stream, dtype=dtype) for _ in range(steps)] for k in range(members)
    ]


def update(moments: AdamMoments, step: int) -> Tensor:
    mean, square = moments.mean / (1 - BETAS[0] ** step), moments.square / (1 - BETAS[1] ** step)
    return mean / (square.sqrt() + 1e-8)


def relative_error(moments: AdamMoments, reference: AdamMoments, step: int) -> float:
    expected = update(reference, step)
    return ((update(moments, step) - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("step", [1, 20, 300])
def test_means_add_up_to_the_mean_of_the_summed_gradient(step: int):
    members = noisy(3, step, 1.0, torch.float32)
    summed = adam([sum(gradients) for gradients in zip(*members, strict=True)])
    merged = sum_moments([adam(own) for own in members], step=step, betas=BETAS)
    assert merged.mean.dtype == torch.float32
    torch.testing.assert_close(merged.mean, summed.mean, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("step", [1, 7, 500])
def test_constant_gradients_give_exactly_the_square_of_the_summed_mean(step: int):
    gradients = [
        torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64),
        torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64),
    ]
    merged = sum_moments([adam([own] * step) for own in gradients], step=step, betas=BETAS)
    mean, square = merged.mean / (1 - BETAS[0] ** step), merged.square / (1 - BETAS[1] ** step)
    torch.testing.assert_close(mean, gradients[0] + gradients[1], atol=1e-12, rtol=0)
    torch.testing.assert_close(square, mean.square(), atol=1e-10, rtol=1e-10)


def test_the_second_moment_is_never_below_the_square_of_the_first():
    step = 20
    merged = sum_moments([adam(own) for own in noisy(4, step, 0.3)], step=step, betas=BETAS)
    mean, square = merged.mean / (1 - BETAS[0] ** step), merged.square / (1 - BETAS[1] ** step)
    assert (square >= mean.square() * (1 - 1e-12)).all()


def test_a_jump_of_the_gradient_does_not_push_the_second_moment_below_the_square_of_the_first():
    """After 200 zeros and 5 ones the fast mean is 0.4, its square above the slow second moment: a negative variance."""
    step = 205
    jump = adam([torch.zeros(1, dtype=torch.float64)] * 200 + [torch.ones(1, dtype=torch.float64)] * 5)
    assert jump.square / (1 - BETAS[1] ** step) < (jump.mean / (1 - BETAS[0] ** step)).square()
    merged = sum_moments([jump, jump], step=step, betas=BETAS)
    mean, square = merged.mean / (1 - BETAS[0] ** step), merged.square / (1 - BETAS[1] ** step)
    assert square.item() == pytest.approx(mean.square().item(), rel=1e-12)


@pytest.mark.parametrize("step", [20, 100, 1000])
def test_bias_correction_makes_the_update_right_from_the_start(step: int):
    """Independent noise. Without the correction the error is 0.6, 0.3 and 0.1 at step 20, 100 and 1000."""
    members = noisy(3, step, 0.0)
    moments = [adam(own) for own in members]
    summed = adam([sum(gradients) for gradients in zip(*members, strict=True)])
    corrected = relative_error(sum_moments(moments, step=step, betas=BETAS), summed, step)
    mean = sum(own.mean for own in moments)
    raw = AdamMoments(mean, sum((own.square - own.mean.square()).clamp_min(0) for own in moments) + mean.square())
    assert corrected < {20: 0.25, 100: 0.12, 1000: 0.09}[step]
    if step < 1000:
        assert relative_error(raw, summed, step) > 2 * corrected
    assert relative_error(mean_moments(moments), summed, step) > 3 * corrected


def test_the_paper_takes_means_of_both():
    one = AdamMoments(torch.tensor([1.0]), torch.tensor([4.0]))
    other = AdamMoments(torch.tensor([3.0]), torch.tensor([2.0]))
    merged = mean_moments([one, other])
    assert (merged.mean.item(), merged.square.item()) == (2.0, 3.0)


def test_before_the_first_step_there_is_nothing_to_merge():
    zero = AdamMoments(torch.zeros(3), torch.zeros(3))
    merged = sum_moments([zero, zero], step=0, betas=BETAS)
    assert torch.equal(merged.mean, torch.zeros(3))
    assert torch.equal(merged.square, torch.zeros(3))
