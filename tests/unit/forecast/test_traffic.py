from __future__ import annotations

import itertools

import pytest

from distmoe.forecast.traffic import bytes_to_peer, distinct_ranks, peer_pairs, step_traffic
from distmoe.parallel.placement import place
from tests.unit.forecast.samples import UNEVEN, workload


@pytest.mark.parametrize(("ranks", "ep_size", "per_node"), [(8, 4, 4), (8, 8, 4), (12, 6, 4), (12, 3, 4), (8, 1, 4)])
def test_pairs_of_a_block_are_counted_as_a_loop_counts_them(ranks, ep_size, per_node):
    pairs = [(a, b) for a, b in itertools.permutations(range(ranks), 2) if a // ep_size == b // ep_size]
    inside = sum(a // per_node == b // per_node for a, b in pairs)
    assert peer_pairs(ranks, ep_size, per_node) == (inside, len(pairs) - inside)


def test_a_message_by_hand():
    """8 tokens of 32 fp32 numbers to 2 ranks: 4 rows of 128 bytes, 4 times; and counts of 2 int64 (4 experts / 2)."""
    size = bytes_to_peer(workload(), ep_size=2, task_groups=[0], routed_index=0, tokens=8, element=4)
    assert size == 4 * 4 * 128 + 2 * 8


def test_with_a_capacity_every_rank_sends_its_whole_table_of_counts():
    """4 experts instead of the peer's 2; 8 tokens, of which a factor of 0.5 keeps half."""
    options = {"ep_size": 2, "task_groups": [0], "routed_index": 0, "tokens": 8, "element": 4}
    gate = ("model.moe.gate.kind=token",)
    assert bytes_to_peer(workload(*gate, "model.moe.capacity_factor=1.25"), **options) == 4 * 4 * 128 + 4 * 8
    assert bytes_to_peer(workload(*gate, "model.moe.capacity_factor=0.5"), **options) == 4 * 2 * 128 + 4 * 8
    once = bytes_to_peer(
        workload(*gate, "model.moe.capacity_factor=0.5", "model.moe.deduplicate=true"), **options
    )  # all 4 tokens, weights and places of 2 rows, counts of 4 experts and tokens for 2 ranks
    assert once == pytest.approx(4 * 4 * 128 + 2 * 2 * 8 + (4 + 2) * 8)


def test_pools_of_different_sizes_send_counts_of_their_own_experts():
    options = {"ep_size": 2, "routed_index": 0, "tokens": 8, "element": 4}
    counts = [
        bytes_to_peer(workload(*UNEVEN), task_groups=hosted, **options) - 4 * 4 * 128 for hosted in ([0], [1], [0, 1])
    ]
    assert counts == [1 * 8, 3 * 8, 4 * 8]


def test_partitioned_blocks_keep_all_bytes_inside_a_node():
    """8 ranks on two nodes, two task groups: blocks of 4 stay inside; one block of 8 crosses with 4 of 7 peers."""
    run = workload()
    options = {"per_node": 4, "micro_batch": 4, "accumulation": 2, "element": 4}
    blocks = place(run.grouping, run.weights, num_ranks=8, ep_size=4, mode="partitioned")
    whole = place(run.grouping, run.weights, num_ranks=8, ep_size=8, mode="colocated")
    inside, across = step_traffic(run, blocks, **options), step_traffic(run, whole, **options)
    # 2 layers x 2 micro-batches x 5 exchanges x pairs
    assert (inside.messages_inside, inside.messages_between) == (20 * 8 * 3, 0)
    assert (across.messages_inside, across.messages_between) == (20 * 8 * 3, 20 * 8 * 4)
    assert inside.bytes_between == 0
    assert across.bytes_between == across.bytes_inside * 4 / 3


def test_distinct_ranks_are_the_published_values():
    """Performance notes: (P, E, K) = (8, 128, 8) 5.34; (4, 16, 2) 1.80."""
    assert distinct_ranks(8, 128, 8) == pytest.approx(5.34, abs=0.005)
    assert distinct_ranks(4, 16, 2) == pytest.approx(1.80, abs=0.005)
    assert distinct_ranks(4, 16, 1) == pytest.approx(1.0)


def test_experts_that_ranks_cannot_share_equally_visit_ranks_too():
    """More ranks than experts: each choice is on a rank of its own. 3 experts on 2 ranks, 2 chosen: 1 of 3 pairs
    shares a rank."""
    assert distinct_ranks(1, 4, 2) == 1
    assert distinct_ranks(16, 4, 2) == pytest.approx(2)
    assert distinct_ranks(2, 3, 2) == pytest.approx(5 / 3)
