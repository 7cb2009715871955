"""The exchange on four gloo ranks against a table of who sends which row where.

Row ``k`` from rank ``i`` to rank ``j`` carries the number ``100 i + 10 j + k``. Rows sent, one line per sender::

            to 0  1  2  3
    from 0     1  2  0  1
    from 1     0  0  0  0      sends nothing
    from 2     3  0  2  0
    from 3     0  1  0  0      nobody sends to 3 but 0
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distmoe.parallel.all_to_all import all_to_all, exchange_counts
from distmoe.parallel.placement import place
from distmoe.parallel.process_groups import create
from distmoe.parallel.traffic import Traffic, TrafficCounter
from distmoe.tasks import TaskGrouping
from tests.distributed.harness import run_ranks

_TABLE = [[1, 2, 0, 1], [0, 0, 0, 0], [3, 0, 2, 0], [0, 1, 0, 0]]
_NOTHING = [[0] * 4] * 4
_WIDTH = 3


def _numbers(table: list[list[int]], sender: int, receiver: int) -> list[int]:
    return [100 * sender + 10 * receiver + k for k in range(table[sender][receiver])]


def _sent(table: list[list[int]], rank: int) -> list[int]:
    return [number for receiver in range(4) for number in _numbers(table, rank, receiver)]


def _received(table: list[list[int]], rank: int) -> list[int]:
    return [number for sender in range(4) for number in _numbers(table, sender, rank)]


def _world(rank: int, table: list[list[int]], dtype: torch.dtype) -> dict[str, Any]:
    """One exchange over the world, there and, where there is a gradient, back."""
    import torch.distributed as dist

    traffic, column = TrafficCounter(), [row[rank] for row in table]
    counts = exchange_counts(
        torch.tensor(table[rank])[:, None], process_group=dist.group.WORLD, traffic=traffic, tag="counts"
    )
    rows = torch.tensor(_sent(table, rank), dtype=dtype)[:, None, None].expand(-1, _WIDTH, 2)  # strided on purpose
    rows = rows.clone(memory_format=torch.preserve_format).requires_grad_(dtype.is_floating_point)
    received = all_to_all(
        rows,
        send_counts=table[rank],
        receive_counts=column,
        process_group=dist.group.WORLD,
        traffic=traffic,
        tag="rows",
    )
    gradient = None
    if rows.requires_grad:
        received.mul(_weights(received)).sum().backward()
        assert rows.grad is not None
        gradient = rows.grad.float()
    return {
        "counts": counts[:, 0].tolist(),
        "received": received.detach().float(),
        "dtype": received.dtype,
        "gradient": gradient,
        "traffic": {
            (tag, direction): traffic.read(tag, direction)  # type: ignore[arg-type]
            for tag in ("counts", "rows")
            for direction in ("forward", "backward")
        },
    }


def _weights(received: Tensor) -> Tensor:
    """A different factor for each row, known to the sender too: its number modulo 8."""
    return received.detach().remainder(8)


def _all_dtypes(rank: int) -> dict[torch.dtype, dict[str, Any]]:
    return {dtype: _world(rank, _TABLE, dtype) for dtype in (torch.float32, torch.bfloat16, torch.int64)}


def _empty(rank: int) -> dict[str, Any]:
    return _world(rank, _NOTHING, torch.float32)


def _expanded_gradient(rank: int) -> Tensor:
    """``sum`` gives an expanded (stride 0) gradient, which backends refuse."""
    import torch.distributed as dist

    rows = torch.ones(4, 2, requires_grad=True)
    all_to_all(rows, send_counts=[1] * 4, receive_counts=[1] * 4, process_group=dist.group.WORLD).sum().backward()
    assert rows.grad is not None
    return rows.grad


def _inside_blocks(rank: int) -> tuple[int, int, Traffic, list[float]]:
    """Two task groups on two blocks of two ranks: every rank sends one row to itself and ``rank + 1`` to the other."""
    placement = place(TaskGrouping.one_per_task(2, 1), [1, 1], num_ranks=4, ep_size=2, mode="partitioned")
    groups, traffic = create(placement), TrafficCounter()
    process_group, here = groups.hosting[0].process_group, rank % 2
    send = [rank + 1, rank + 1]
    send[here] = 1
    rows = torch.full((sum(send), _WIDTH), float(rank))
    table = exchange_counts(torch.tensor(send), process_group=process_group)
    received = all_to_all(
        rows, send_counts=send, receive_counts=table.tolist(), process_group=process_group, traffic=traffic
    )
    block = placement.block_ranks(placement.block_of(rank))
    outside = traffic.bytes_outside(block), traffic.bytes_outside((rank,))
    groups.destroy()
    return *outside, traffic.read(), received[:, 0].tolist()


def _everything(rank: int) -> tuple:
    return _all_dtypes(rank), _empty(rank), _expanded_gradient(rank), _inside_blocks(rank)


@pytest.fixture(scope="module")
def answers() -> list[tuple]:
    return run_ranks(_everything, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_rows_arrive_in_order_of_sender(answers: list[tuple], dtype: torch.dtype) -> None:
    for rank, (by_dtype, *_) in enumerate(answers):
        expected = torch.tensor(_received(_TABLE, rank)).to(dtype).float()
        assert by_dtype[dtype]["dtype"] == dtype
        assert torch.equal(by_dtype[dtype]["received"], expected[:, None, None].expand(-1, _WIDTH, 2))


def test_counts_arrive_transposed(answers: list[tuple]) -> None:
    for rank, (by_dtype, *_) in enumerate(answers):
        assert by_dtype[torch.float32]["counts"] == [row[rank] for row in _TABLE]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_return_to_their_rows_unscaled(answers: list[tuple], dtype: torch.dtype) -> None:
    for rank, (by_dtype, *_) in enumerate(answers):
        sent = torch.tensor(_sent(_TABLE, rank)).to(dtype)[:, None, None].expand(-1, _WIDTH, 2)
        assert torch.equal(by_dtype[dtype]["gradient"], _weights(sent).float())


def test_an_exchange_of_nothing_returns_and_has_gradients(answers: list[tuple]) -> None:
    for _, nothing, *_ in answers:
        assert nothing["received"].shape == nothing["gradient"].shape == (0, _WIDTH, 2)
        assert nothing["traffic"]["rows", "backward"] == Traffic(calls=1)


def test_expanded_gradients_are_accepted(answers: list[tuple]) -> None:
    for _, _, gradient, _ in answers:
        assert torch.equal(gradient, torch.ones(4, 2))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.int64, 8)])
def test_bytes_and_messages_are_exact(answers: list[tuple], dtype: torch.dtype, size: int) -> None:
    """Off-diagonal row sums go out, off-diagonal column sums come back as gradients."""
    for rank, (by_dtype, *_) in enumerate(answers):
        traffic = by_dtype[dtype]["traffic"]
        out = [n for peer, n in enumerate(_TABLE[rank]) if peer != rank]
        back = [row[rank] for peer, row in enumerate(_TABLE) if peer != rank]
        row_bytes = _WIDTH * 2 * size
        assert traffic["rows", "forward"] == Traffic(1, sum(n > 0 for n in out), sum(out) * row_bytes)
        expected = Traffic(1, sum(n > 0 for n in back), sum(back) * row_bytes)
        assert traffic["rows", "backward"] == (expected if dtype.is_floating_point else Traffic())
        assert traffic["counts", "forward"] == Traffic(1, 3, 3 * 8)


def test_no_byte_leaves_a_block(answers: list[tuple]) -> None:
    """Rank r sends r + 1 rows of 12 bytes to its neighbour; blocks are {0 1} and {2 3}."""
    for rank, (*_, (outside_block, outside_rank, total, received)) in enumerate(answers):
        assert outside_block == 0
        assert outside_rank == total.bytes == (rank + 1) * _WIDTH * 4
        neighbour = rank ^ 1
        from_neighbour, from_self = [float(neighbour)] * (neighbour + 1), [float(rank)]
        assert received == (from_self + from_neighbour if rank % 2 == 0 else from_neighbour + from_self)
