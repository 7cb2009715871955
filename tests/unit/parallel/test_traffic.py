"""Counting, by hand: world ranks 4..7 form the process group, this rank is 5."""

from __future__ import annotations

from distmoe.parallel.traffic import Traffic, TrafficCounter

_RANKS = (4, 5, 6, 7)


def _counted() -> TrafficCounter:
    """Rows of 8 bytes to 4, 5, 6, 7: layer 0 ``3 9 0 2`` forward, ``0 1 1 1`` backward; layer 1 ``0 5 0 0``."""
    counter = TrafficCounter()
    counter.record("layer0", "forward", ranks=_RANKS, own=1, send_counts=[3, 9, 0, 2], row_bytes=8)
    counter.record("layer0", "backward", ranks=_RANKS, own=1, send_counts=[0, 1, 1, 1], row_bytes=8)
    counter.record("layer1", "forward", ranks=_RANKS, own=1, send_counts=[0, 5, 0, 0], row_bytes=8)
    return counter


def test_own_rows_do_not_count_and_empty_ones_are_no_message() -> None:
    assert _counted().read("layer0", "forward") == Traffic(calls=1, messages=2, bytes=40)


def test_directions_and_tags_are_apart() -> None:
    counter = _counted()
    assert counter.read("layer0", "backward") == Traffic(1, 2, 16)
    assert counter.read("layer1") == Traffic(1, 0, 0)
    assert counter.read(direction="forward") == Traffic(2, 2, 40)
    assert counter.read() == Traffic(3, 4, 56)
    assert counter.read("layer2") == Traffic(0, 0, 0)
    assert counter.tags == ("layer0", "layer1")


def test_bytes_to_ranks_outside_a_set_are_known() -> None:
    counter = _counted()  # 24 bytes to 4, 8 to 6, 24 to 7
    assert counter.bytes_outside(_RANKS) == 0
    assert counter.bytes_outside({5, 6, 7}) == 24
    assert counter.bytes_outside({4, 5}) == 32


def test_reset_forgets_everything() -> None:
    counter = _counted()
    counter.reset()
    assert (counter.read(), counter.tags, counter.bytes_outside(())) == (Traffic(), (), 0)
