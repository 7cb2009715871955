"""Router noise: while training only, at the gate's granularity, resumable."""

from __future__ import annotations

import pytest
import torch

from distmoe.errors import ConfigError
from tests.unit.moe.gate_cases import EXPERTS, LEARNED, MIXED, ONE_TASK_GROUP, make_context, make_gate, make_tokens

X_TD = make_tokens(len(MIXED.task_ids_T))
NOISY = [(kind, "normal") for kind in LEARNED] + [(kind, "multiplicative") for kind in LEARNED if kind != "task"]


def noisy_and_quiet(kind, noise):
    options = {"allowed": ONE_TASK_GROUP, "noise_eps": 0.5}
    return make_gate(kind, noise=noise, **options), make_gate(kind, **options)


@pytest.mark.parametrize(("kind", "noise"), NOISY)
def test_noise_changes_logits_in_training_and_never_in_evaluation(kind, noise):
    noisy, quiet = noisy_and_quiet(kind, noise)
    assert not torch.equal(noisy(X_TD, MIXED).logits_TE, quiet(X_TD, MIXED).logits_TE)
    before = torch.get_rng_state()
    assert torch.equal(noisy.eval()(X_TD, MIXED).logits_TE, quiet(X_TD, MIXED).logits_TE)
    assert torch.equal(torch.get_rng_state(), before), "evaluation must not move the generator"


@pytest.mark.parametrize(("kind", "noise"), NOISY)
def test_restored_generator_state_repeats_the_noise(kind, noise):
    noisy, _ = noisy_and_quiet(kind, noise)
    state = torch.get_rng_state()
    first, second = noisy(X_TD, MIXED).logits_TE, noisy(X_TD, MIXED).logits_TE
    torch.set_rng_state(state)
    assert torch.equal(noisy(X_TD, MIXED).logits_TE, first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("kind", "units"), [("task", MIXED.task_ids_T), ("sequence", MIXED.sequence_ids_T)])
def test_tokens_of_one_unit_get_the_same_noise(kind, units):
    noisy, _ = noisy_and_quiet(kind, "normal")
    logits_TE = noisy(X_TD, MIXED).logits_TE
    for unit in units.unique():
        rows = logits_TE[units == unit]
        assert (rows == rows[0]).all()


def test_normal_noise_has_standard_deviation_one_over_the_number_of_experts():
    gate = make_gate("token", noise="normal", init="zeros", allowed=ONE_TASK_GROUP)
    context = type(MIXED)(torch.zeros(20_000, dtype=torch.int64), torch.zeros(20_000, dtype=torch.int64), 1)
    logits_TE = gate(torch.zeros(20_000, 8), context).logits_TE
    # 120,000 draws: the estimate of the deviation is within 1 % (5 standard errors).
    assert abs(logits_TE.std().item() * EXPERTS - 1) < 0.01


def test_input_noise_of_a_sequence_is_not_levelled_out_by_its_length():
    """With states of 1 and one weight, logits are the factors, from U(0.5, 1.5): their deviation is 1 / sqrt(12)."""
    gate = make_gate("sequence", noise="multiplicative", noise_eps=0.5, allowed=ONE_TASK_GROUP)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.zero_()
        gate.weight_ED[0, 0] = 1.0
    lengths = [1] * 2_000 + [16] * 2_000
    context = make_context(lengths, [0] * len(lengths))
    first_B = torch.tensor(lengths).cumsum(0) - 1
    noise_B = gate(torch.ones(len(context.task_ids_T), 8), context).logits_TE[first_B, 0]
    assert abs(noise_B[:2_000].std().item() * 12**0.5 - 1) < 0.05
    assert abs(noise_B[2_000:].std().item() * 12**0.5 - 1) < 0.05


@pytest.mark.parametrize(
    ("kind", "noise"), [("task", "multiplicative"), ("fixed", "multiplicative"), ("fixed", "normal")]
)
def test_noise_without_effect_is_refused_and_what_is_expected_is_accepted(kind, noise):
    with pytest.raises(ConfigError, match="reads nothing that this noise changes") as refused:
        make_gate(kind, noise=noise)
    for other in refused.value.expected.split(" | "):
        make_gate(kind, noise=other)
