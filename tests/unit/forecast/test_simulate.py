from __future__ import annotations

import pytest

from distmoe.forecast.draw import draw_simulation
from distmoe.forecast.simulate import layer_traffic, simulate, waiting
from tests.unit.forecast.samples import cluster, workload


@pytest.fixture(scope="module")
def points():
    return list(simulate(workload(), cluster(1, 8), max_ranks=4096, tokens=512, element=2))


def of(points, kind, ranks, count):
    return next(p for p in points if (p.kind, p.num_ranks, p.num_task_groups) == (kind, ranks, count))


def test_task_groups_send_g_times_fewer_messages_and_the_stated_share_of_bytes(points):
    """Performance notes, section 3: messages P (P/G - 1), bytes times (1 - G/P) / (1 - 1/P)."""
    for ranks, count in ((16, 4), (256, 16), (4096, 64)):
        whole, parts = of(points, "global", ranks, count), of(points, "task group", ranks, count)
        assert whole.traffic.messages == 4 * ranks * (ranks - 1)
        assert parts.traffic.messages == 4 * ranks * (ranks // count - 1)
        assert parts.traffic.bytes / whole.traffic.bytes == pytest.approx((1 - count / ranks) / (1 - 1 / ranks))


def test_blocks_inside_a_node_send_nothing_between_nodes(points):
    chosen = [point for point in points if point.kind == "task group in a node"]
    assert {point.traffic.bytes_between for point in chosen} == {0}
    assert max(point.num_ranks for point in chosen) == 4096
    assert all(point.ep_size <= 8 for point in chosen)


def test_blocks_divide_nodes_of_any_size():
    """Nodes of 7: 14 ranks for 4 task groups are blocks of 2, and in a node of 1."""
    found = list(simulate(workload(), cluster(1, 7), max_ranks=14, tokens=512, element=2))
    assert {(point.kind, point.ep_size) for point in found if point.num_ranks == 14} == {
        ("global", 14), ("task group", 2), ("task group in a node", 1)
    }  # fmt: skip


def test_equal_task_groups_get_equal_ranks(points):
    assert {point.idle_share for point in points} == {0.0}


def test_waiting_grows_with_the_block_and_needs_noise():
    assert waiting(64, 8, layers=4, noise=0.0, seed=0) == 1.0
    alone, block, whole = (waiting(64, size, layers=12, noise=0.1, seed=0) for size in (1, 8, 64))
    assert 1.0 < alone < block < whole < 1.5


def test_one_rank_exchanges_nothing():
    assert layer_traffic(8, 1, per_node=4, tokens=64, top_k=2, row=128).bytes == 0


def test_the_picture_is_drawn_for_both_themes(points, tmp_path):
    for path in draw_simulation(points, tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")
