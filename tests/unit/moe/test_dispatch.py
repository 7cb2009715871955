"""Slots, capacity, copies and sums of rows, and dispatch on one rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distmoe.moe.dispatch import LocalDispatcher, SlotLayout
from distmoe.moe.dispatch.all_to_all import by_expert
from distmoe.moe.dispatch.capacity import compress, keep_mask, kept_rows
from distmoe.moe.dispatch.deduplicated import _find_distinct, _rows_of_items
from distmoe.moe.dispatch.plan import pair_map
from distmoe.moe.dispatch.rows import RowMap, collect, invert, permute, spread
from distmoe.moe.dispatch.slots import NOT_HOSTED, sort_by_slot


def test_slots_follow_rank_then_task_group_then_expert() -> None:
    """Two ranks host task group 0 (experts 0..3 of 10) and task group 2 (experts 8, 9): the module's picture."""
    layout = SlotLayout((4, 2), ep_rank=1, ep_size=2)
    assert layout.local_sizes == (2, 1)
    assert (layout.slots_per_rank, layout.num_slots) == (3, 6)
    no = NOT_HOSTED
    assert layout.table([0, 8], 10) == [0, 1, 3, 4, no, no, no, no, 2, 5]
    assert layout.pool_of_slot().tolist() == [0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("ep_size", [1, 2, 4])
def test_every_hosted_expert_has_one_slot_on_the_rank_that_holds_it(ep_size: int) -> None:
    layout = SlotLayout((4, 8), ep_size=ep_size)
    table = layout.table([0, 4], 12)
    assert sorted(table) == list(range(12))
    for pool, (first, size) in enumerate([(0, 4), (4, 8)]):
        for expert in range(size):
            slot = table[first + expert]
            assert slot // layout.slots_per_rank == expert // (size // ep_size)
            assert layout.pool_of_slot()[slot] == pool


def test_sorting_keeps_token_order_inside_a_slot_and_counts_empty_slots() -> None:
    order_N, counts_S = sort_by_slot(torch.tensor([[2, 0], [0, 2], [2, 3]]), 5)
    assert order_N.tolist() == [1, 2, 0, 3, 4, 5]
    assert counts_S.tolist() == [2, 0, 3, 1, 0]


def random_map(num_items: int, num_choices: int, present: float) -> RowMap:
    """A map of randomly kept (item, choice) pairs in random order."""
    order = torch.randperm(num_items * num_choices)
    order = order[: round(present * len(order))]
    return pair_map(order, num_items, num_choices, complete=present == 1.0)


@pytest.mark.parametrize("present", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("num_choices", [1, 3])
def test_spread_and_collect_equal_index_arithmetic_with_all_gradients(present: float, num_choices: int) -> None:
    torch.manual_seed(0)
    row_map = random_map(5, num_choices, present)
    items = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    num_rows = len(row_map.items_R)
    weights = torch.randn(num_rows, dtype=torch.float64, requires_grad=True)

    def fast(items: Tensor, weights: Tensor) -> Tensor:
        return collect(spread(items, row_map).sin(), weights, row_map)

    def slow(items: Tensor, weights: Tensor) -> Tensor:
        rows = items[row_map.items_R].sin() * weights[:, None]
        return torch.zeros_like(items).index_add(0, row_map.items_R, rows)

    torch.testing.assert_close(fast(items, weights), slow(items, weights), atol=1e-14, rtol=0)
    grad = torch.randn(5, 4, dtype=torch.float64)
    got = torch.autograd.grad(fast(items, weights), (items, weights), grad)
    want = torch.autograd.grad(slow(items, weights), (items, weights), grad)
    torch.testing.assert_close(got, want, atol=1e-14, rtol=0)


def test_collect_without_weights_sums_and_its_gradient_is_a_copy() -> None:
    row_map = random_map(4, 2, 1.0)
    rows = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    total = collect(rows, None, row_map)
    torch.testing.assert_close(total, torch.stack([rows[pair].sum(0) for pair in row_map.rows_TK]))
    grad = torch.randn(4, 3, dtype=torch.float64)
    (grad_rows,) = torch.autograd.grad(total, rows, grad)
    assert torch.equal(grad_rows, grad[row_map.items_R])


def test_low_precision_rows_are_summed_in_float32() -> None:
    """256 + 1 - 256: bfloat16 has 8 bits and would lose the 1."""
    rows = torch.tensor([[256.0], [1.0], [-256.0]], dtype=torch.bfloat16)
    row_map = pair_map(torch.arange(3), 1, 3, complete=True)
    assert collect(rows, torch.ones(3), row_map).item() == 1.0


def test_permute_and_its_gradient_are_inverse_gathers() -> None:
    order = torch.tensor([2, 0, 1])
    rows = torch.arange(6.0).view(3, 2).requires_grad_()
    permuted = permute(rows, order, invert(order))
    assert torch.equal(permuted, rows[order])
    (grad,) = torch.autograd.grad(permuted, rows, torch.tensor([[1.0, 1], [2, 2], [3, 3]]))
    assert grad[:, 0].tolist() == [2.0, 3.0, 1.0]


def test_capacity_is_per_task_group_and_lower_ranks_come_first() -> None:
    """Pool 0: slots 0, 1 and 24 rows, mean 12, limit 12 at cf 1. Pool 1: slot 2 and 3 rows, limit at least 4.

    ::

        slot        0   1   2
        rank 0      8   0   3
        rank 1     10   6   0      slot 0: 4 places left
    """
    kept = kept_rows(torch.tensor([[8, 0, 3], [10, 6, 0]]), torch.tensor([0, 0, 1]), 1.0)
    assert kept.tolist() == [[8, 0, 3], [4, 6, 0]]


def test_capacity_rounds_and_never_goes_below_four() -> None:
    pools = torch.tensor([0, 0])
    assert kept_rows(torch.tensor([[9, 0]]), pools, 1.25).tolist() == [[6, 0]]  # round(1.25 * 4.5) = round(5.625)
    assert kept_rows(torch.tensor([[6, 0]]), pools, 0.1).tolist() == [[4, 0]]


def test_kept_rows_are_the_first_of_each_slot() -> None:
    order_N = torch.tensor([4, 1, 0, 2, 3])
    mask = keep_mask(order_N, torch.tensor([3, 0, 2]), torch.tensor([2, 0, 1]))
    assert mask.tolist() == [True, True, False, True, False]
    assert compress(order_N, mask, 3).tolist() == [4, 1, 2]


def test_received_rows_go_from_source_order_to_expert_order() -> None:
    """Rank 0 sends 1 row for expert 0 and 2 for expert 1; rank 1 sends 2 and 1: arrival a0 a1 a1 b0 b0 b1."""
    order = by_expert(torch.tensor([[1, 2], [2, 1]]), 6)
    assert order is not None
    assert order.tolist() == [0, 3, 4, 1, 2, 5]
    assert by_expert(torch.tensor([[3], [4]]), 7) is None


def test_distinct_tokens_travel_once_per_rank() -> None:
    """Two slots per rank. Token 0: ranks 0, 0, 1; token 1: 1, 1, 1; token 2: 1, 0, 1.

    Travelling: to rank 0 tokens 0, 2; to rank 1 tokens 0, 1, 2.
    """
    distinct = _find_distinct(torch.tensor([[0, 1, 2], [3, 2, 3], [2, 1, 3]]), SlotLayout((4,), 0, 2))
    assert distinct.counts_P.tolist() == [2, 3]
    assert [pair // 3 for pair in distinct.order_N[:5].tolist()] == [0, 2, 0, 1, 2]
    assert distinct.leads_TK.tolist() == [[True, False, True], [True, False, False], [True, True, False]]
    assert distinct.place_TK.tolist() == [[0, 0, 0], [1, 1, 1], [2, 1, 2]]


def test_rows_of_received_tokens_are_found_whatever_their_number() -> None:
    row_map = _rows_of_items(torch.tensor([2, 0, 2, 0, 2]), 4, 3)
    found = [
        sorted(row for row, there in zip(rows, present, strict=True) if there)
        for rows, present in zip(row_map.rows_TK.tolist(), row_map.present_TK.tolist(), strict=True)
    ]
    assert found == [[1, 3], [], [0, 2, 4], []]


@pytest.mark.parametrize("num_tokens", [0, 1, 7])
@pytest.mark.parametrize("num_choices", [1, 2, 3])
def test_dispatch_then_combine_is_the_sum_of_weights(num_tokens: int, num_choices: int) -> None:
    torch.manual_seed(1)
    x = torch.randn(num_tokens, 4, dtype=torch.float64)
    slots = torch.stack([torch.randperm(6)[:num_choices] for _ in range(num_tokens)]) if num_tokens else None
    slots = torch.empty(0, num_choices, dtype=torch.int64) if slots is None else slots
    weights = torch.rand(num_tokens, num_choices, dtype=torch.float64)
    dispatcher = LocalDispatcher(SlotLayout((4, 2)))
    rows, plan = dispatcher.dispatch(x, slots, weights, host_counts=False)
    assert plan.host_counts == tuple(torch.bincount(slots.flatten(), minlength=6).tolist())
    pools = list(plan.pools(rows, dispatcher.layout))
    assert torch.equal(torch.cat([part for part, _, _ in pools]), rows)
    expected_slots = sorted(slots.flatten().tolist())
    assert [len(part) for part, _, _ in pools] == [
        sum(s < 4 for s in expected_slots),
        sum(s > 3 for s in expected_slots),
    ]
    torch.testing.assert_close(dispatcher.combine(rows, plan), x * weights.sum(1, keepdim=True))


def test_capacity_drops_later_tokens_counts_them_and_zeroes_their_share() -> None:
    """Nine tokens want slot 0 of two; cf 1.0 leaves round(9 / 2) = 4 places for tokens 0..3."""
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.full((9, 1), 2.0, dtype=torch.float64, requires_grad=True)
    dispatcher = LocalDispatcher(SlotLayout((2,)), capacity_factor=1.0)
    rows, plan = dispatcher.dispatch(x, torch.zeros(9, 1, dtype=torch.int64), weights, host_counts=False)
    y = dispatcher.combine(rows, plan)
    assert rows.shape == (4, 4)
    assert plan.dropped is not None
    assert plan.dropped.item() == 5
    assert torch.equal(y, torch.cat([2 * x[:4], torch.zeros(5, 4, dtype=torch.float64)]))
    y.sum().backward()
    assert weights.grad is not None
    assert weights.grad[4:].eq(0).all()
    assert x.grad is not None
    assert x.grad[:4].eq(2).all()
    assert x.grad[4:].eq(0).all()
