"""A conditional encoder against the plain one: before training, in its gradients, and between tasks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.nn.conditional.samples import (
    EVERYTHING,
    MASK_B11S,
    REPO,
    TASK_IDS_B,
    TASKS,
    B,
    D,
    S,
    SmallEncoder,
    assert_same,
    states,
    stirred,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "all modules": EVERYTHING,
    "tables": EVERYTHING | {"generator": "table"},
    "full attention, scale only": EVERYTHING
    | {
        "attention": EVERYTHING["attention"] | {"form": "full"},
        "layer_norm": {"layers": "all", "form": "scale_only"},
    },
    "defaults": {"attention": {"block_side": 3, "max_length": 6}},
}
WITHOUT_ATTENTION = EVERYTHING | {"attention": {"enabled": False}}


@pytest.mark.parametrize("variant", VARIANTS)
def test_before_training_it_is_the_plain_encoder_for_every_task(variant: str) -> None:
    """1e-6: PyTorch may take another attention kernel for a float mask than for a boolean one."""
    plain, conditional = SmallEncoder().eval(), SmallEncoder(VARIANTS[variant]).eval()
    for task in range(TASKS):
        ids_B = torch.full((B,), task)
        difference = conditional(states(), ids_B, MASK_B11S) - plain(states(), ids_B, MASK_B11S)
        assert difference.abs().max() <= 1e-6


def test_before_training_all_but_attention_is_bitwise_the_plain_encoder() -> None:
    plain, conditional = SmallEncoder().eval(), SmallEncoder(WITHOUT_ATTENTION).eval()
    assert torch.equal(conditional(states(), TASK_IDS_B, MASK_B11S), plain(states(), TASK_IDS_B, MASK_B11S))


def test_before_training_dropout_falls_on_the_same_entries() -> None:
    """A step of training from one random state gives the plain encoder's output, bit by bit."""
    outputs = []
    for encoder in (SmallEncoder(), SmallEncoder(WITHOUT_ATTENTION)):
        torch.manual_seed(3)
        outputs.append(encoder.train()(states(), TASK_IDS_B, MASK_B11S))
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], SmallEncoder().eval()(states(), TASK_IDS_B, MASK_B11S))


def test_the_plain_tensors_keep_their_names_and_values() -> None:
    plain, conditional = SmallEncoder().state_dict(), SmallEncoder(EVERYTHING).state_dict()
    assert plain.keys() <= conditional.keys()
    assert all(torch.equal(value, conditional[name]) for name, value in plain.items())


def test_the_published_structure_is_not_the_plain_encoder() -> None:
    plain, published = SmallEncoder().eval(), SmallEncoder(REPO).eval()
    difference = published(states(), TASK_IDS_B, MASK_B11S) - plain(states(), TASK_IDS_B, MASK_B11S)
    assert difference.abs().max() > 0.1


def _backward(encoder: SmallEncoder) -> dict[str, Tensor]:
    encoder.zero_grad()
    (encoder(states(), TASK_IDS_B, MASK_B11S) * states(seed=9)).sum().backward()
    return {name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.grad is not None}


def _halves(gradient: Tensor) -> tuple[float, float]:
    """Largest gradient of what makes gamma, and of what makes beta."""
    gamma, beta = gradient.chunk(2)
    return gamma.abs().max().item(), beta.abs().max().item()


def test_the_first_backward_reaches_what_zeros_do_not_block() -> None:
    """Zero W_up blocks the rest of the bottleneck, zero A blocks gamma of attention, zero generators block z."""
    gradients = _backward(SmallEncoder(EVERYTHING).eval())
    for layer in ("layers.0", "layers.1"):
        assert gradients[f"{layer}.attention_bias.blocks_Ls"].abs().max() > 0
        assert gradients[f"{layer}.bottleneck.w_up"].abs().max() > 0
        for norm in ("attention_norm", "feed_forward_norm"):
            assert min(_halves(gradients[f"{layer}.{norm}.generator.weight"])) > 0
        gamma, beta = _halves(gradients[f"{layer}.attention_bias.generator.weight"])
        assert gamma == 0
        assert beta > 0
        assert gradients[f"{layer}.bottleneck.w_down"].abs().max() == 0
        assert gradients[f"{layer}.bottleneck.generator.weight"].abs().max() == 0
    assert min(_halves(gradients["alignment.generator.weight"])) > 0
    assert gradients["conditioner.table.z_Tk"].abs().max() == 0


def test_from_the_second_step_every_parameter_learns() -> None:
    encoder = SmallEncoder(EVERYTHING).eval()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.01)
    _backward(encoder)
    optimizer.step()
    gradients = _backward(encoder)
    assert gradients.keys() == dict(encoder.named_parameters()).keys()
    assert not [name for name, gradient in gradients.items() if gradient.abs().max() == 0]
    for layer in ("layers.0", "layers.1"):
        assert min(_halves(gradients[f"{layer}.attention_bias.generator.weight"])) > 0
        assert min(_halves(gradients[f"{layer}.bottleneck.generator.weight"])) > 0


@pytest.mark.parametrize("generator", ["linear", "table"])
def test_rows_of_absent_tasks_get_a_zero_gradient_and_not_none(generator: str) -> None:
    encoder = stirred(SmallEncoder(EVERYTHING | {"generator": generator}))
    gradients = _backward(encoder)
    tables = [gradient for name, gradient in gradients.items() if name.endswith(("z_Tk", "table_Tm"))]
    assert len(tables) == (1 if generator == "linear" else 9)  # alignment and four modules in each of two layers
    for gradient in tables:
        assert gradient[1].abs().max() == 0
        assert all(gradient[task].abs().max() > 0 for task in (0, 2, 3))


@pytest.mark.parametrize("values", [EVERYTHING, EVERYTHING | {"generator": "table"}, REPO], ids=["z", "table", "repo"])
def test_a_mixed_batch_is_its_tasks_one_by_one(values: dict[str, Any]) -> None:
    encoder = stirred(SmallEncoder(values))
    mixed = encoder(states(), TASK_IDS_B, MASK_B11S)
    for task in TASK_IDS_B.unique():
        rows = TASK_IDS_B.eq(task)
        alone = encoder(states()[rows], TASK_IDS_B[rows], MASK_B11S[rows])
        assert_same(mixed[rows], alone)


def test_permuting_the_batch_permutes_the_output() -> None:
    encoder, order = stirred(SmallEncoder(EVERYTHING)), torch.tensor([3, 1, 4, 0, 2])
    permuted = encoder(states()[order], TASK_IDS_B[order], MASK_B11S[order])
    assert_same(permuted, encoder(states(), TASK_IDS_B, MASK_B11S)[order])


def test_changing_one_task_leaves_the_rows_of_the_others() -> None:
    encoder = stirred(SmallEncoder(EVERYTHING))
    before = encoder(states(), TASK_IDS_B, MASK_B11S)
    with torch.no_grad():
        encoder.conditioner.z_Tk[2] += 1
    after = encoder(states(), TASK_IDS_B, MASK_B11S)
    own = TASK_IDS_B == 2
    assert torch.equal(before[~own], after[~own])
    assert (before[own] - after[own]).abs().amax((1, 2)).min() > 1e-3


def test_half_precision_runs_and_stays_near() -> None:
    encoder = stirred(SmallEncoder(EVERYTHING), std=0.1)
    full = encoder(states(), TASK_IDS_B, MASK_B11S)
    half = encoder.bfloat16()(states().bfloat16(), TASK_IDS_B, MASK_B11S)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() / full.norm() < 0.03  # some 20 roundings of 2^-9 each


def test_longer_padding_changes_nothing_for_real_tokens() -> None:
    encoder = stirred(SmallEncoder(EVERYTHING))
    padded = torch.cat([states(), torch.full((B, 4, D), 50.0)], dim=1)
    mask = torch.cat([MASK_B11S, torch.zeros(B, 1, 1, 4, dtype=torch.bool)], dim=3)
    assert_same(encoder(padded, TASK_IDS_B, mask)[:, :S], encoder(states(), TASK_IDS_B, MASK_B11S))
