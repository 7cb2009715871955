"""Rows to the ranks of a process group and back, with gradient.

Every rank of the process group must make the same calls in the same order, also when it has no rows. Autograd takes
part in that: where one rank's input requires a gradient and another's does not, or where one rank's loss does not
depend on what it received, one of them skips the backward exchange and all wait. So every rank's input requires a
gradient, zero rows included, and its loss depends on the output; or none's does.

Receive counts must come from :func:`exchange_counts`, never from local arithmetic: a rank that expects more rows than
it is sent gets no error but old memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from distmoe.parallel.exchange_call import ExchangeCall, ExchangeObserver
from distmoe.parallel.traffic import Direction, TrafficCounter


def all_to_all(
    rows: Tensor,
    *,
    send_counts: Sequence[int],
    receive_counts: Sequence[int],
    process_group: ProcessGroup | None,
    traffic: TrafficCounter | None = None,
    tag: str = "",
    task_groups: tuple[int, ...] = (),
    observers: Sequence[ExchangeObserver] = (),
) -> Tensor:
    """Sends each rank its rows and returns those received, both in order of rank.

    The backward pass sends gradients the way the rows came, without any scaling: the gradient of an exchange is the
    reverse exchange, and whoever averages over ranks does it elsewhere.

    Args:
        rows: ``[sum(send_counts), ...]``, any dtype that the backend can send.
        send_counts: Rows for each rank of the process group.
        receive_counts: Rows from each rank.
        process_group: None: a single rank, ``rows`` itself is returned.
        traffic: Where to count; None: nowhere.
        tag: Under which name.
        task_groups: Whose tokens these are, for the observers.
        observers: Who is told of the exchange and of its reverse, in the same order on all ranks.

    Returns:
        ``[sum(receive_counts), ...]``.
    """
    if process_group is None:
        return rows
    assert len(rows) == sum(send_counts), f"{len(rows)} rows, but {sum(send_counts)} to send"
    account = _Account(tag, task_groups, traffic, tuple(observers))
    return _AllToAll.apply(rows, tuple(send_counts), tuple(receive_counts), process_group, account)


def exchange_counts(
    counts: Tensor,
    *,
    process_group: ProcessGroup | None,
    traffic: TrafficCounter | None = None,
    tag: str = "",
    task_groups: tuple[int, ...] = (),
    observers: Sequence[ExchangeObserver] = (),
) -> Tensor:
    """Sends row ``i`` of a table to rank ``i`` and returns what each rank sent here; no gradient, no host sync.

    Args:
        counts: ``[ranks, ...]``, for example rows for each rank and each of its experts, int64.
        process_group: None: a single rank, ``counts`` itself is returned.
        traffic: Where to count; None: nowhere.
        tag: Under which name.
        task_groups: Whose tokens these are, for the observers.
        observers: Who is told of the exchange and of its reverse, in the same order on all ranks.

    Returns:
        Same shape; row ``i`` comes from rank ``i``.
    """
    if process_group is None:
        return counts
    ones = (1,) * process_group.size()
    assert len(counts) == len(ones), f"{len(counts)} rows for {len(ones)} ranks"
    account = _Account(tag, task_groups, traffic, tuple(observers))
    return _exchange(counts.detach(), ones, ones, process_group, "forward", account)


@dataclass(frozen=True)
class _Account:
    """Under which name an exchange is counted and observed."""

    tag: str
    task_groups: tuple[int, ...]
    traffic: TrafficCounter | None
    observers: tuple[ExchangeObserver, ...]


def _exchange(
    rows: Tensor,
    send_counts: tuple[int, ...],
    receive_counts: tuple[int, ...],
    process_group: ProcessGroup,
    direction: Direction,
    account: _Account,
) -> Tensor:
    received = rows.new_empty((sum(receive_counts), *rows.shape[1:]))
    ranks = tuple(dist.get_process_group_ranks(process_group))
    call = ExchangeCall(
        account.tag, account.task_groups, direction, process_group, ranks, send_counts, receive_counts,
        tuple(rows.shape[1:]), rows.dtype,
    )  # fmt: skip
    with _observed(account.observers, call):
        # Backends refuse strided input, and an expanded gradient (of a sum, say) is strided.
        dist.all_to_all_single(
            received, rows.contiguous(), list(receive_counts), list(send_counts), group=process_group
        )
    if account.traffic is not None:
        account.traffic.record(
            account.tag,
            direction,
            ranks=ranks,
            own=process_group.rank(),
            send_counts=send_counts,
            row_bytes=rows.shape[1:].numel() * rows.element_size(),
        )
    return received


def _observed(observers: tuple[ExchangeObserver, ...], call: ExchangeCall) -> AbstractContextManager[object]:
    """All observers around one exchange, the first outermost."""
    stack = ExitStack()
    for observer in observers:
        stack.enter_context(observer.exchange(call))
    return stack


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        send_counts: tuple[int, ...],
        receive_counts: tuple[int, ...],
        process_group: ProcessGroup,
        account: _Account,
    ) -> Tensor:
        ctx.reverse = receive_counts, send_counts, process_group, "backward", account
        return _exchange(rows, send_counts, receive_counts, process_group, "forward", account)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _exchange(gradient, *ctx.reverse), None, None, None, None
