"""Router losses: values worked by hand, slow oracles, and several ranks against the union of their tokens."""

from __future__ import annotations

import math

import pytest
import torch

from distmoe.moe.config import AuxiliaryLossConfig
from distmoe.moe.losses import router_losses
from distmoe.moe.routing import Routing, TokenContext

ALL = AuxiliaryLossConfig(balance=0.01, z=0.001, importance=0.1, mutual_information=0.005)
NAMES = ("balance", "z", "importance", "mutual_information")
EXACT = {"rtol": 0, "atol": 1e-12}


def route(logits_TE, top_k):
    probs_TE = logits_TE.softmax(dim=1)
    ids_TK = logits_TE.detach().topk(top_k, dim=1).indices
    return Routing(ids_TK, probs_TE.gather(1, ids_TK), probs_TE, logits_TE)


def of_probs(rows):
    return route(torch.tensor(rows, dtype=torch.float64).log(), 1)


def context_of(tasks):
    task_ids_T = torch.tensor(tasks, dtype=torch.int64)
    return TokenContext(task_ids_T, torch.arange(len(tasks)), len(tasks))


def values(routing, tasks, *, num_tasks=4, num_task_groups=1):
    losses = router_losses(
        [routing],
        context_of(tasks),
        weights=ALL,
        num_tasks=num_tasks,
        pool_sizes=[(routing.probs_TE.shape[1] // num_task_groups,) * num_task_groups],
    )
    return {name: of_layers.item() for name, of_layers in losses.by_layer.items()}


def one_hot(choices, num_experts=4):
    eye = torch.eye(num_experts, dtype=torch.float64)
    return of_probs(eye[choices].tolist())


# ---- values by hand


def test_invariant_7_uniform_routing():
    """L_aux = E * sum F_i / E = 1; probabilities carry no information about tasks."""
    got = values(of_probs([[0.25] * 4] * 8), [0, 1, 2, 3] * 2)
    assert got["balance"] == pytest.approx(1, abs=1e-12)
    assert got["mutual_information"] == pytest.approx(0, abs=1e-12)
    assert got["z"] == pytest.approx(0, abs=1e-12)  # log-probabilities as logits: logsumexp = 0


def test_invariant_7_collapse_to_one_expert():
    """F = P = (1,0,0,0): balance E = 4; CV^2 of both is E - 1 = 3; mutual information is no barrier: 0."""
    got = values(one_hot([0] * 8), [0, 1, 2, 3] * 2)
    assert got["balance"] == pytest.approx(4, abs=1e-12)
    assert got["importance"] == pytest.approx(6, abs=1e-12)
    assert got["mutual_information"] == pytest.approx(0, abs=1e-12)


def test_invariant_7_blocks_of_tasks_with_experts_of_their_own():
    """Task t on expert t, 4 equal tasks: -log 4; balanced, so the others are at their balanced values."""
    got = values(one_hot([0, 1, 2, 3] * 2), [0, 1, 2, 3] * 2)
    assert got["mutual_information"] == pytest.approx(-math.log(4), abs=1e-12)
    assert got["balance"] == pytest.approx(1, abs=1e-12)
    assert got["importance"] == pytest.approx(0, abs=1e-12)


def test_invariant_7_two_blocks_of_two_tasks_each():
    assert values(one_hot([0, 0, 2, 2]), [0, 1, 2, 3])["mutual_information"] == pytest.approx(-math.log(2), abs=1e-12)


def test_one_is_no_lower_bound_of_the_balance_loss():
    """F = (2/3, 1/3), P = (.34, .66): 2 * (2/3 * .34 + 1/3 * .66) = .8933."""
    got = values(of_probs([[0.51, 0.49], [0.51, 0.49], [1e-300, 1.0]]), [0, 0, 0])
    assert got["balance"] == pytest.approx(2 * (2 / 3 * 0.34 + 1 / 3 * 0.66), abs=1e-12)


def test_z_is_the_mean_square_of_the_log_partition():
    """Logits (0, 0) and (log 3, 0): log 2 and log 4."""
    logits_TE = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], dtype=torch.float64)
    expected = (math.log(2) ** 2 + math.log(4) ** 2) / 2
    assert values(route(logits_TE, 1), [0, 0])["z"] == pytest.approx(expected, abs=1e-12)


def test_importance_is_the_squared_variation_of_probabilities_plus_that_of_rows():
    """Sums of p: (1.5, .5), mean 1, variance .25; rows (2, 0), mean 1, variance 1."""
    got = values(of_probs([[0.9, 0.1], [0.6, 0.4]]), [0, 0])
    assert got["importance"] == pytest.approx(0.25 + 1, abs=1e-12)


def test_balance_is_taken_inside_each_task_group_and_averaged_over_tokens():
    """E=4 in two task groups. Group 0 has 3 tokens, all on expert 0: 2 there. Group 1 has 1 uniform token: 1.

    Over all four experts together it would count the sizes of the task groups, which no router can change.
    """
    tiny = 1e-300  # stands for the zero outside the task group
    routing = of_probs([[1, tiny, tiny, tiny]] * 3 + [[tiny, tiny, 0.5, 0.5]])
    got = values(routing, [0, 0, 0, 1], num_tasks=2, num_task_groups=2)
    assert got["balance"] == pytest.approx((3 * 2 + 1 * 1) / 4, abs=1e-12)
    # CV^2 of p: 1 and 0; of rows: 1 and 1
    assert got["importance"] == pytest.approx((3 * 2 + 1 * 1) / 4, abs=1e-12)


# ---- oracles


def oracle(routing, tasks, num_tasks):
    probs_TE, ids_TK = routing.probs_TE, routing.expert_ids_TK
    num_tokens, num_experts = probs_TE.shape
    top_k = ids_TK.shape[1]
    share = [
        sum(int(i == e) for row in ids_TK.tolist() for i in row) / (top_k * num_tokens) for e in range(num_experts)
    ]
    mean_E = probs_TE.mean(dim=0)
    balance = num_experts * sum(share[e] * mean_E[e] for e in range(num_experts))
    z = torch.stack([row.exp().sum().log() ** 2 for row in routing.logits_TE]).mean()
    shares_E = torch.tensor(share, dtype=probs_TE.dtype)
    importance = sum(x.var(unbiased=False) / x.mean() ** 2 for x in (probs_TE.sum(dim=0), shares_E))
    information = 0
    for task in range(num_tasks):
        own = [i for i, t in enumerate(tasks) if t == task]
        for e in range(num_experts):
            if own:
                joint = sum(probs_TE[i, e] for i in own) / num_tokens
                information = information + joint * (joint / (len(own) / num_tokens * mean_E[e])).log()
    return {"balance": balance, "z": z, "importance": importance, "mutual_information": -information}


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_equal_the_oracle(name, top_k):
    generator = torch.Generator().manual_seed(0)
    logits_TE = torch.randn(13, 5, dtype=torch.float64, generator=generator).requires_grad_()
    tasks = torch.randint(0, 3, (13,), generator=generator).tolist()
    routing = route(logits_TE, top_k)
    expected = oracle(routing, tasks, 3)[name]
    weights = AuxiliaryLossConfig(**{name: 0.7})
    losses = router_losses([routing], context_of(tasks), weights=weights, num_tasks=3, pool_sizes=[(5,)])
    assert list(losses.by_layer) == [name], "losses without weight are not computed"
    torch.testing.assert_close(losses.by_layer[name][0], expected.detach(), **EXACT)
    torch.testing.assert_close(losses.total, 0.7 * expected, **EXACT)
    (gradient,) = torch.autograd.grad(losses.total, logits_TE, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad(0.7 * expected, logits_TE)
    torch.testing.assert_close(gradient, expected_gradient, **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_has_the_promised_slope(name):
    """Finite differences while no route changes (counts are constants then)."""
    logits_TE = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    ids_TK = logits_TE.detach().topk(2, dim=1).indices
    weights = AuxiliaryLossConfig(**{name: 1.0})

    def loss(z_TE):
        probs_TE = z_TE.softmax(dim=1)
        routing = Routing(ids_TK, probs_TE.gather(1, ids_TK), probs_TE, z_TE)
        return router_losses(
            [routing], context_of([0, 1, 1, 2, 2, 0]), weights=weights, num_tasks=3, pool_sizes=[(z_TE.shape[1],)]
        ).total

    assert torch.autograd.gradcheck(loss, logits_TE)


def test_losses_of_pools_of_different_sizes_are_those_of_each_pool_weighted_by_its_tokens():
    """Pools of 1 and 3 experts; tasks 0 (one token) and 1 (three) stay inside theirs."""
    inside = [[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.6, 0.2, 0.2]]
    rows = [[1.0, 0.0, 0.0, 0.0], *([0.0, *row] for row in inside)]
    found = router_losses(
        [of_probs(rows)], context_of([0, 1, 1, 1]), weights=ALL, num_tasks=2, pool_sizes=[(1, 3)]
    ).by_layer
    alone = values(of_probs(inside), [1, 1, 1], num_tasks=2)
    assert found["balance"].item() == pytest.approx((1 + 3 * alone["balance"]) / 4)
    assert found["importance"].item() == pytest.approx(3 * alone["importance"] / 4)


@pytest.mark.parametrize("num_tasks", [3, 7])
def test_tasks_without_tokens_change_nothing(num_tasks):
    logits_TE = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    tasks = [0, 1, 2, 0, 1, 2, 0, 1]
    results = []
    for count in (3, num_tasks):
        losses = router_losses(
            [route(logits_TE, 1)], context_of(tasks), weights=ALL, num_tasks=count, pool_sizes=[(4,)]
        )
        results.append((losses.total, *torch.autograd.grad(losses.total, logits_TE)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_experts_outside_the_task_group_keep_gradients_finite():
    """-inf logits, probability exactly 0: the places where p log p and logsumexp could give NaN."""
    scores_TE = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    allowed_TE = torch.tensor([[True, True, False, False]] * 3 + [[False, False, True, True]] * 3)
    losses = router_losses(
        [route(scores_TE.masked_fill(~allowed_TE, -torch.inf), 1)],
        context_of([0, 0, 0, 1, 1, 1]), weights=ALL, num_tasks=3, pool_sizes=[(2, 2)],
    )  # fmt: skip
    losses.total.backward()
    assert losses.total.isfinite()
    assert scores_TE.grad.isfinite().all()
    assert (scores_TE.grad[~allowed_TE] == 0).all()
    # Which task group a token is in carries log 2 nats of task information before any learning.
    assert losses.by_layer["mutual_information"].item() <= -math.log(2) + 1e-6


def test_no_token_anywhere_gives_zero_and_zero_gradients():
    logits_TE = torch.zeros(0, 4, requires_grad=True)
    bias_E = torch.zeros(4, requires_grad=True)
    losses = router_losses([route(logits_TE + bias_E, 1)], context_of([]), weights=ALL, num_tasks=2, pool_sizes=[(4,)])
    losses.total.backward()
    assert losses.total.item() == 0
    assert bias_E.grad.tolist() == [0, 0, 0, 0]


# ---- several ranks

SPLITS = {
    "two ranks": [[0, 2, 4, 6, 8], [1, 3, 5, 7]],
    "disjoint tasks": [[0, 3, 6], [1, 4, 7], [2, 5, 8]],
    "one rank without tokens": [[0, 1, 2, 3, 4], [], [5, 6, 7], [8]],
}


class World:
    """Emulates the all-reduce of several ranks in one process: the first pass records, the second sums."""

    def __init__(self, size):
        self.size, self.sent, self.summed = size, [], None

    def __call__(self, flat):
        assert not flat.requires_grad
        if self.summed is None:
            self.sent.append(flat.clone())
            return flat
        return self.summed.clone()

    def finish_recording(self):
        assert len({part.shape for part in self.sent}) == 1, "every rank must send the same layout"
        assert len(self.sent) == self.size, "one collective per rank, for all layers together"
        self.summed = torch.stack(self.sent).sum(dim=0)


def rank_losses(states_TD, routers, tokens, world, weights):
    tasks_T = torch.tensor([0, 1, 2] * 3)
    routings = [route(states_TD[tokens] @ router.t(), 2) for router in routers]
    return router_losses(
        routings, context_of(tasks_T[tokens].tolist()), weights=weights, num_tasks=4,
        pool_sizes=[(len(router),) for router in routers],
        world_size=1 if world is None else world.size, all_reduce=world,
    )  # fmt: skip


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("weights", [ALL, *(AuxiliaryLossConfig(**{name: 0.3}) for name in NAMES)])
def test_mean_over_ranks_of_gradients_is_the_gradient_of_the_union(split, weights):
    generator = torch.Generator().manual_seed(2)
    states_TD = torch.randn(9, 6, dtype=torch.float64, generator=generator)
    routers = [torch.randn(5, 6, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]
    union = rank_losses(states_TD, routers, list(range(9)), None, weights)
    expected = torch.autograd.grad(union.total, routers)

    world = World(len(SPLITS[split]))
    for tokens in SPLITS[split]:
        rank_losses(states_TD, routers, tokens, world, weights)
    world.finish_recording()
    mean = [torch.zeros_like(router) for router in routers]
    for tokens in SPLITS[split]:
        losses = rank_losses(states_TD, routers, tokens, world, weights)
        torch.testing.assert_close(losses.total, union.total, **EXACT)
        for name, by_layer in losses.by_layer.items():
            torch.testing.assert_close(by_layer, union.by_layer[name], **EXACT)
        for total, gradient in zip(mean, torch.autograd.grad(losses.total, routers), strict=True):
            total += gradient / world.size
    for got, wanted in zip(mean, expected, strict=True):
        assert wanted.abs().max() > 1e-5
        torch.testing.assert_close(got, wanted, **EXACT)


def test_nothing_is_sent_without_weights():
    def all_reduce(flat):
        raise AssertionError("a collective without need")

    losses = router_losses(
        [of_probs([[0.5, 0.5]])], context_of([0]), weights=AuxiliaryLossConfig(), num_tasks=1, pool_sizes=[(2,)],
        world_size=2, all_reduce=all_reduce,
    )  # fmt: skip
    assert losses.total.item() == 0
    assert losses.by_layer == {}
