"""What holds for every gate, because the skeleton does it."""

from __future__ import annotations

import copy

import pytest
import torch

from distmoe.errors import ConfigError
from distmoe.moe.routing import TokenContext
from tests.unit.moe.gate_cases import (
    EXPERTS,
    KINDS,
    LEARNED,
    MIXED,
    NO_TOKENS,
    ONE_TASK_GROUP,
    TWO_TASK_GROUPS,
    WIDTH,
    make_context,
    make_gate,
    make_tokens,
)

ALLOWED = torch.tensor(TWO_TASK_GROUPS)
NUM_TOKENS = len(MIXED.task_ids_T)
EVERY_GATE = pytest.mark.parametrize("kind", KINDS)
EVERY_LEARNED_GATE = pytest.mark.parametrize("kind", LEARNED)


@EVERY_GATE
def test_tokens_never_leave_their_task_group(kind):
    routing = make_gate(kind)(make_tokens(NUM_TOKENS), MIXED)
    allowed_TE = ALLOWED[MIXED.task_ids_T]
    assert routing.expert_ids_TK.dtype == torch.int64
    assert routing.expert_ids_TK.shape == routing.weights_TK.shape == (NUM_TOKENS, 2)
    assert allowed_TE.gather(1, routing.expert_ids_TK).all()
    assert (routing.expert_ids_TK[:, 0] != routing.expert_ids_TK[:, 1]).all()
    assert (routing.probs_TE[~allowed_TE] == 0).all()
    assert (routing.logits_TE[~allowed_TE] == -torch.inf).all()
    torch.testing.assert_close(routing.probs_TE.sum(dim=1), torch.ones(NUM_TOKENS))


@EVERY_LEARNED_GATE
def test_experts_outside_the_task_group_get_no_gradient(kind):
    """Only tasks 0 and 2 are present, so nothing may change the scores of experts 3..5."""
    gate = make_gate(kind)
    context = make_context([3, 4], [0, 2])
    scores = []
    original = gate.logits
    gate.logits = lambda x_TD, where: scores.append(original(x_TD, where)) or scores[0].retain_grad() or scores[0]
    routing = gate(make_tokens(7), context)
    (routing.weights_TK.sin().sum() + routing.probs_TE.square().sum() + routing.logits_TE.logsumexp(1).sum()).backward()
    assert (scores[0].grad[:, 3:] == 0).all()
    assert (scores[0].grad[:, :3] != 0).any()


@EVERY_GATE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_router_is_float32_in_half_precision_modules_and_under_autocast(kind, dtype):
    """Equal bits with a float32 gate that holds the same (rounded) weights and reads the same (rounded) states."""
    half = make_gate(kind).to(dtype)
    full = copy.deepcopy(half).float()
    x_TD = make_tokens(NUM_TOKENS, dtype=dtype)
    expected = full(x_TD.float(), MIXED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = half(x_TD, MIXED)
    for name in ("weights_TK", "probs_TE", "logits_TE"):
        assert getattr(routing, name).dtype == torch.float32
        assert torch.equal(getattr(routing, name), getattr(expected, name)), name
    assert torch.equal(routing.expert_ids_TK, expected.expert_ids_TK)


@EVERY_LEARNED_GATE
@pytest.mark.parametrize("combine", ["raw", "renorm", "straight_through"])
def test_no_token_gives_zero_gradients_for_every_parameter(kind, combine):
    gate = make_gate(kind, combine=combine)
    x_TD = make_tokens(0).requires_grad_()
    routing = gate(x_TD, NO_TOKENS)
    assert routing.expert_ids_TK.shape == (0, 2)
    assert routing.probs_TE.shape == (0, EXPERTS)
    (routing.weights_TK.sum() + routing.probs_TE.sum()).backward()
    for name, parameter in gate.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad == 0).all(), name


def test_gate_fixed_routes_no_token():
    assert make_gate("fixed")(make_tokens(0), NO_TOKENS).weights_TK.shape == (0, 2)


@EVERY_LEARNED_GATE
def test_absent_tasks_give_present_and_finite_gradients(kind):
    gate = make_gate(kind)
    make_gradients(gate, make_context([4], [2]))
    for name, parameter in gate.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("kind", "name"), [("per_task", "weight_MED"), ("task", "logits_ME")])
def test_rows_of_absent_tasks_get_exactly_zero(kind, name):
    gate = make_gate(kind)
    make_gradients(gate, make_context([4], [2]))
    gradient = gate.get_parameter(name).grad
    assert (gradient[[0, 1, 3]] == 0).all()
    assert (gradient[2] != 0).any()


@EVERY_GATE
def test_route_of_a_sequence_does_not_depend_on_the_rest_of_the_batch(kind):
    gate = make_gate(kind).double()
    x_TD = make_tokens(NUM_TOKENS, dtype=torch.float64)
    alone = MIXED.sequence_ids_T == 2
    number = int(alone.sum())
    expected = gate(x_TD, MIXED)
    own = gate(x_TD[alone], TokenContext(MIXED.task_ids_T[alone], torch.zeros(number, dtype=torch.int64), 1))
    assert torch.equal(own.expert_ids_TK, expected.expert_ids_TK[alone])
    torch.testing.assert_close(own.probs_TE, expected.probs_TE[alone], rtol=0, atol=1e-12)


@EVERY_GATE
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_overflowed_states_stay_in_their_task_group_until_the_loss_reports_them(kind, value):
    x_TD = torch.full((NUM_TOKENS, WIDTH), value)
    expert_ids_TK = make_gate(kind)(x_TD, MIXED).expert_ids_TK
    assert ALLOWED[MIXED.task_ids_T].gather(1, expert_ids_TK).all()


@EVERY_GATE
def test_top_k_above_the_experts_of_a_task_group_is_refused_with_both_numbers(kind):
    make_gate(kind, top_k=3)
    with pytest.raises(ConfigError, match=r"(?s)top_k is larger.*top_k 4 with 3 experts.*top_k <= 3"):
        make_gate(kind, top_k=4)
    make_gate(kind, top_k=4, allowed=ONE_TASK_GROUP)


@EVERY_GATE
def test_values_depend_on_seed_and_name_only(kind):
    one, two = make_gate(kind), make_gate(kind)
    two.reset(7, "layers.1.gate")
    other_seed = copy.deepcopy(two.state_dict())
    two.reset(0, "layers.3.gate")
    other_name = copy.deepcopy(two.state_dict())
    torch.manual_seed(99)
    two.reset(0, "layers.1.gate")
    drawn = [name for name, _ in one.named_parameters() if "weight_" in name and "norm" not in name]
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
    for name in drawn:
        if kind != "hybrid" or name == "weight_ED":
            assert not torch.equal(one.state_dict()[name], other_seed[name]), name
            assert not torch.equal(one.state_dict()[name], other_name[name]), name


@EVERY_LEARNED_GATE
def test_zeros_start_makes_the_first_routing_uniform(kind):
    routing = make_gate(kind, init="zeros")(make_tokens(NUM_TOKENS), MIXED)
    torch.testing.assert_close(routing.probs_TE, ALLOWED[MIXED.task_ids_T] / 3)


@EVERY_GATE
def test_names_avoid_the_word_by_which_the_engine_finds_expert_parameters(kind):
    gate = make_gate(kind)
    assert not [name for name in gate.state_dict() if "expert" in name]


def test_table_for_another_gate_is_refused():
    with pytest.raises(ConfigError, match=r"belongs to gate fixed"):
        make_gate("task", table="random")


def make_gradients(gate, context):
    """Backward of a function that depends on every chosen weight and every probability."""
    routing = gate(make_tokens(len(context.task_ids_T)), context)
    slopes = torch.arange(1.0, 1 + EXPERTS)
    (routing.weights_TK.square().sum() + (routing.probs_TE * slopes).sum()).backward()
