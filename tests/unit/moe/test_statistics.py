"""Routing statistics against counts made by hand and in loops."""

from __future__ import annotations

import math

import pytest
import torch

from distmoe.moe.routing import Routing, TokenContext
from distmoe.moe.statistics import RoutingStatistics


def routing_of(ids_TK, num_experts, probs_TE=None):
    ids_TK = torch.tensor(ids_TK, dtype=torch.int64).reshape(len(ids_TK), -1)
    probs_TE = torch.full((len(ids_TK), num_experts), 1 / num_experts) if probs_TE is None else torch.tensor(probs_TE)
    return Routing(ids_TK, torch.ones(ids_TK.shape), probs_TE, probs_TE.log())


def context_of(tasks):
    return TokenContext(torch.tensor(tasks, dtype=torch.int64), torch.arange(len(tasks)), len(tasks))


def make(num_tasks=2, num_experts=4, top_k=1, num_task_groups=(1,)):
    return RoutingStatistics(
        num_tasks=num_tasks,
        pool_sizes=[(num_experts // count,) * count for count in num_task_groups],
        top_k=top_k,
        device="cpu",
    )


def test_a_small_case_by_hand():
    """Task 0 sends 3 tokens to expert 0 and 1 to expert 1; task 1 sends one to each expert.

    Rows (4, 2, 1, 1) of 8: largest share 1/2; mean 2, variance (4+0+1+1)/4 = 1.5.
    Task 0 (3, 1, 0, 0): mean 1, variance (4+0+1+1)/4 = 1.5. Task 1 is even.
    """
    statistics = make()
    statistics.update([routing_of([0, 0, 0, 1, 0, 1, 2, 3], 4)], context_of([0] * 4 + [1] * 4))
    (layer,) = statistics.read()
    assert layer.num_tokens == 8
    assert layer.rows_by_task == ((3, 1, 0, 0), (1, 1, 1, 1))
    assert layer.rows == (4, 2, 1, 1)
    assert layer.max_share == 0.5
    assert layer.load_variation == pytest.approx(math.sqrt(1.5) / 2)
    assert layer.task_load_variation == (pytest.approx(math.sqrt(1.5)), 0.0)
    assert layer.mean_entropy == pytest.approx(math.log(4))
    assert layer.dropped == layer.drop_rate == 0


def test_pools_of_different_sizes_are_kept_apart():
    """Pools {0} and {1, 2}: task 0 sends 5 rows to expert 0, task 1 sends 3 and 1 to its two; mean 2, deviation 1."""
    statistics = RoutingStatistics(num_tasks=2, pool_sizes=[(1, 2)], top_k=1, device="cpu")
    statistics.update([routing_of([0] * 5 + [1, 1, 1, 2], 3)], context_of([0] * 5 + [1] * 4))
    (layer,) = statistics.read()
    assert layer.task_load_variation == (0.0, 0.5)
    assert layer.max_share == 1.0


def test_shares_and_variation_are_inside_task_groups():
    """Two task groups of two experts: task 0 (experts 0, 1) sends 3 and 1 rows, task 1 (experts 2, 3) 2 and 2."""
    statistics = make(num_task_groups=(2,))
    statistics.update([routing_of([0, 0, 0, 1, 2, 2, 3, 3], 4)], context_of([0] * 4 + [1] * 4))
    (layer,) = statistics.read()
    assert layer.max_share == 0.75
    assert layer.task_load_variation == (0.5, 0.0)  # (3, 1): mean 2, deviation 1
    assert layer.load_variation == pytest.approx(0.25)


def test_drop_rate_that_a_capacity_of_1_25_would_have_caused():
    """16 rows over 4 experts: capacity max(round(1.25 * 4), 4) = 5. Rows (10, 6, 0, 0) lose 5 + 1 of 16."""
    statistics = make()
    statistics.update([routing_of([0] * 10 + [1] * 6, 4)], context_of([0] * 16))
    assert statistics.read()[0].dropped_at_1_25 == 6
    assert statistics.read()[0].drop_rate_at_1_25 == 6 / 16


def test_capacity_is_at_least_four_rows_and_counts_each_micro_batch_alone():
    """5 rows on one expert of 4 lose one, twice; 10 rows at once would have a capacity of 4 and lose 6."""
    statistics = make()
    for _ in range(2):
        statistics.update([routing_of([0] * 5, 4)], context_of([0] * 5))
    assert statistics.read()[0].dropped_at_1_25 == 2


def test_entropy_is_zero_for_certain_routes_and_skips_zero_probabilities():
    statistics = make(num_experts=2)
    statistics.update([routing_of([0, 1], 2, [[1.0, 0.0], [0.5, 0.5]])], context_of([0, 0]))
    assert statistics.read()[0].mean_entropy == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("top_k", [1, 3])
def test_counts_equal_a_loop_over_several_updates_and_layers(top_k):
    generator = torch.Generator().manual_seed(0)
    statistics = make(num_tasks=3, num_experts=5, top_k=top_k, num_task_groups=(1, 1))
    expected = torch.zeros(2, 3, 5, dtype=torch.int64)
    for num_tokens in (7, 0, 4):
        tasks = torch.randint(0, 3, (num_tokens,), generator=generator)
        ids_LTK = torch.rand(2, num_tokens, 5, generator=generator).topk(top_k, dim=2).indices
        for layer in range(2):
            for token, task in enumerate(tasks.tolist()):
                for choice in ids_LTK[layer, token].tolist():
                    expected[layer, task, choice] += 1
        routings = [routing_of(ids_TK.tolist(), 5) for ids_TK in ids_LTK] if num_tokens else [empty(top_k)] * 2
        statistics.update(routings, context_of(tasks.tolist()))
    layers = statistics.read()
    assert [layer.rows_by_task for layer in layers] == [tuple(map(tuple, rows)) for rows in expected.tolist()]
    assert [layer.num_tokens for layer in layers] == [11, 11]


def empty(top_k):
    return Routing(
        torch.zeros(0, top_k, dtype=torch.int64), torch.zeros(0, top_k), torch.zeros(0, 5), torch.zeros(0, 5)
    )


def test_dropped_rows_are_added_up_per_layer():
    statistics = make(num_task_groups=(1, 1))
    routings = [routing_of([0, 1], 4)] * 2
    statistics.update(routings, context_of([0, 1]), dropped=[torch.tensor(1), None])
    statistics.update(routings, context_of([0, 1]), dropped=[torch.tensor(1), torch.tensor(2)])
    assert [layer.dropped for layer in statistics.read()] == [2, 2]
    assert statistics.read()[0].drop_rate == 0.5


def test_all_ranks_together_equal_one_process_and_a_rank_without_tokens_sends_the_same_shape():
    ids, tasks = [0, 1, 1, 2, 3, 0], [0, 1, 0, 1, 0, 1]
    whole = make()
    whole.update([routing_of(ids, 4)], context_of(tasks))
    sent = []
    for tokens in ([0, 1, 2, 3], [4, 5], []):
        rank = make()
        if tokens:
            rank.update([routing_of([ids[i] for i in tokens], 4)], context_of([tasks[i] for i in tokens]))
        rank.read(lambda flat: sent.append(flat) or flat)
    assert len({part.shape for part in sent}) == 1
    total = torch.stack(sent).sum(dim=0)
    assert make().read(lambda flat: total) == whole.read()


def test_nothing_routed_is_readable_and_clear_starts_anew():
    statistics = make()
    (layer,) = statistics.read()
    assert (layer.num_tokens, layer.max_share, layer.load_variation, layer.mean_entropy) == (0, 0.0, 0.0, 0.0)
    assert layer.task_load_variation == (None, None)
    statistics.update([routing_of([0, 1], 4)], context_of([0, 1]))
    statistics.clear()
    assert statistics.read() == (layer,)


def test_reading_twice_gives_the_same():
    statistics = make()
    statistics.update([routing_of([0, 1], 4)], context_of([0, 1]))
    assert statistics.read() == statistics.read()


def test_layers_may_have_different_numbers_of_experts():
    """Layer 0 has one expert per task, layer 1 one for both."""
    statistics = RoutingStatistics(num_tasks=2, pool_sizes=[(1, 1), (1,)], top_k=1, device="cpu")
    context = TokenContext(torch.tensor([0, 0, 1]), torch.arange(3), 3)
    statistics.update([routing_of([[0], [0], [1]], 2), routing_of([[0], [0], [0]], 1)], context)
    saved = statistics.state_dict()
    for _ in range(2):
        first, second = statistics.read()
        assert (first.rows_by_task, second.rows_by_task) == (((2, 0), (0, 1)), ((2,), (1,)))
        statistics.load_state_dict(saved)
