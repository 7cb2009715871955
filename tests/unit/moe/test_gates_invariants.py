"""Numeric invariants of task-routed experts that concern gates; numbers are those of the specification's list."""

from __future__ import annotations

import pytest
import torch

from distmoe.errors import ConfigError
from distmoe.moe.gates import start_as_token
from distmoe.moe.routing import TokenContext
from tests.unit.moe.gate_cases import (
    EXPERTS,
    KINDS,
    MIXED,
    ONE_TASK_GROUP,
    TASK_AWARE,
    TWO_TASK_GROUPS,
    WIDTH,
    make_gate,
    make_tokens,
)

X_TD = make_tokens(len(MIXED.task_ids_T), dtype=torch.float64)


@pytest.mark.parametrize("allowed", [ONE_TASK_GROUP, TWO_TASK_GROUPS])
@pytest.mark.parametrize(
    ("kind", "router"),
    [("task_embedding", "linear"), ("task_description", "linear"), ("per_task", "mlp"), ("hybrid", "mlp")],
)
def test_invariant_3_warm_started_gates_equal_gate_token(kind, router, allowed):
    token = make_gate("token", allowed=allowed, seed=5).double()
    gate = make_gate(kind, router=router, allowed=allowed).double()
    assert not torch.allclose(gate(X_TD, MIXED).logits_TE, token(X_TD, MIXED).logits_TE)
    start_as_token(gate, token.weight_ED)
    warm, reference = gate(X_TD, MIXED), token(X_TD, MIXED)
    torch.testing.assert_close(warm.logits_TE, reference.logits_TE, rtol=0, atol=1e-14)
    assert torch.equal(warm.expert_ids_TK, reference.expert_ids_TK)


def test_invariant_3_hybrid_at_initialisation_equals_gate_token():
    """The same name, so the same stream, fills W of both."""
    hybrid, token = make_gate("hybrid").double(), make_gate("token").double()
    assert torch.equal(hybrid.weight_ED, token.weight_ED)
    assert torch.equal(hybrid(X_TD, MIXED).logits_TE, token(X_TD, MIXED).logits_TE)


@pytest.mark.parametrize("kind", ["task", "sequence", "fixed", "task_embedding"])
def test_invariant_3_gates_that_cannot_start_as_token_say_so(kind):
    with pytest.raises(ConfigError, match="cannot start as gate token"):
        start_as_token(make_gate(kind, router="mlp"), make_gate("token").weight_ED)


def test_invariant_4_linear_task_embedding_is_token_plus_a_bias_per_task():
    gate = make_gate("task_embedding", router="linear", allowed=ONE_TASK_GROUP, init_std=1.0).double()
    token = make_gate("token", allowed=ONE_TASK_GROUP).double()
    with torch.no_grad():
        token.weight_ED.copy_(gate.router.weight[:, :WIDTH])
        bias_ME = gate.task_vectors(torch.float64) @ gate.router.weight[:, WIDTH:].t()
    expected = token(X_TD, MIXED).logits_TE + bias_ME[MIXED.task_ids_T]
    assert bias_ME.std(dim=0).min() > 0.1, "the bias differs between tasks"
    torch.testing.assert_close(gate(X_TD, MIXED).logits_TE, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["token", *TASK_AWARE])
@pytest.mark.parametrize(("combine", "reaches"), [("straight_through", True), ("raw", True), ("renorm", False)])
def test_invariant_6_task_loss_reaches_the_router_except_with_renorm_and_one_expert(kind, combine, reaches):
    """At upcycled initialisation all experts are one function f, so the output is sum of weights times f(h)."""
    gate = make_gate(kind, top_k=1, combine=combine, allowed=ONE_TASK_GROUP).double()
    dense = torch.nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
    routing = gate(X_TD, MIXED)
    output_TD = routing.weights_TK.sum(dim=1, keepdim=True) * dense(X_TD).tanh()
    output_TD.square().sum().backward()
    gradients = [parameter.grad for parameter in gate.parameters()]
    assert all(gradient is not None for gradient in gradients)
    largest = max(gradient.abs().max().item() for gradient in gradients)
    assert largest > 1e-6 if reaches else largest == 0


@pytest.mark.parametrize("kind", ["token", *TASK_AWARE])
def test_invariant_10_route_depends_on_the_task_for_task_aware_gates(kind):
    """Trained until task 0 prefers expert 0 and task 2 expert 1 on the same states; `token` cannot, all others can."""
    gate = make_gate(kind, top_k=1, allowed=ONE_TASK_GROUP)
    x_TD = make_tokens(6)
    both = TokenContext(torch.tensor([0, 2]).repeat_interleave(6), torch.arange(2).repeat_interleave(6), 2)
    states_TD = torch.cat([x_TD, x_TD])
    wanted_T = torch.tensor([0, 1]).repeat_interleave(6)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(gate(states_TD, both).logits_TE, wanted_T).backward()
        optimizer.step()
    chosen_T = gate(states_TD, both).expert_ids_TK[:, 0]
    if kind == "token":
        assert torch.equal(chosen_T[:6], chosen_T[6:])
    else:
        assert torch.equal(chosen_T, wanted_T)


@pytest.mark.parametrize("kind", KINDS)
def test_invariant_10_evaluation_is_deterministic(kind):
    gate = make_gate(kind, noise="none" if kind == "fixed" else "normal").eval()
    first, second = gate(X_TD, MIXED), gate(X_TD, MIXED)
    assert torch.equal(first.logits_TE, second.logits_TE)
    assert torch.equal(first.expert_ids_TK, second.expert_ids_TK)
    assert first.logits_TE.shape == (len(X_TD), EXPERTS)
