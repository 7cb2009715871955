"""What routers did since the last log line: accumulated on the device, read once, without a synchronisation per step.

A trainer calls :meth:`RoutingStatistics.update` after each forward pass of a training micro-batch, and at log time
:meth:`RoutingStatistics.read` (one all-reduce, one copy to the host) and :meth:`RoutingStatistics.clear`.

Shape letters: T tokens, E experts of a layer, K experts per token, M tasks, L routed layers, G task groups of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from distmoe.moe.router_sums import AllReduce, by_pool
from distmoe.moe.routing import Routing, TokenContext

_CAPACITY_FACTOR = 1.25  # the usual training capacity (Switch Transformer, T5X), of the drop rate that is only reported
_SMALLEST_CAPACITY = 4


@dataclass(frozen=True)
class LayerStatistics:
    """One routed layer, over all ranks and all updates since the last clear.

    Attributes:
        num_tokens: Routed tokens.
        rows_by_task: [M][E]: rows (token, expert) of each task at each expert.
        rows: [E]: rows per expert, the load.
        dropped: Rows that a capacity limit dropped.
        dropped_at_1_25: Rows that a capacity factor of 1.25 on each rank's micro-batch would have dropped.
        mean_entropy: Mean entropy of the routing probabilities, in nats; log of the number of choices if uniform.
        load_variation: Standard deviation / mean of the load over the experts of a task group, averaged over
            task groups by rows; 0 is balanced.
        task_load_variation: The same for each task alone, over the E_g experts of its task group: 0 spreads the task
            evenly, sqrt(E_g - 1) sends it to one expert. None for a task without rows.
        max_share: Largest share of a task group's rows that one expert takes.
    """

    num_tokens: int
    rows_by_task: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...]
    dropped: int
    dropped_at_1_25: int
    mean_entropy: float
    load_variation: float
    task_load_variation: tuple[float | None, ...]
    max_share: float

    @property
    def drop_rate(self) -> float:
        return self.dropped / max(sum(self.rows), 1)

    @property
    def drop_rate_at_1_25(self) -> float:
        return self.dropped_at_1_25 / max(sum(self.rows), 1)


class RoutingStatistics:
    """Counters of all routed layers, with the same shapes on all ranks.

    Args:
        num_tasks: M.
        pool_sizes: Experts of each task group, per routed layer; experts stand in the order of their task groups.
        top_k: K.
        device: Where the routings are.
    """

    def __init__(
        self,
        *,
        num_tasks: int,
        pool_sizes: Sequence[Sequence[int]],
        top_k: int,
        device: torch.device | str,
    ) -> None:
        self._num_tasks, self._top_k = num_tasks, top_k
        self._pool_sizes = tuple(tuple(sizes) for sizes in pool_sizes)
        num_layers = len(self._pool_sizes)
        self._rows_ME = [
            torch.zeros(num_tasks, sum(sizes), dtype=torch.int64, device=device) for sizes in self._pool_sizes
        ]
        # dropped, dropped at 1.25, sum of entropies; float64 counts exactly up to 2^53
        self._sums_L3 = torch.zeros(num_layers, 3, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(
        self, routings: Sequence[Routing], context: TokenContext, *, dropped: Sequence[Tensor | None] | None = None
    ) -> None:
        """Adds one micro-batch of this rank; launches kernels only, waits for nothing.

        Args:
            routings: Per routed layer.
            context: Task of each token.
            dropped: Per routed layer, how many rows of this rank were dropped (scalar on the device), or None.
        """
        assert len(routings) == len(self._pool_sizes), "one routing per routed layer"
        for layer, routing in enumerate(routings):
            total_ME = self._rows_ME[layer]
            cells_TK = context.task_ids_T.unsqueeze(1) * total_ME.shape[1] + routing.expert_ids_TK
            ones = cells_TK.new_ones(()).expand(cells_TK.numel())
            rows_X = cells_TK.new_zeros(total_ME.numel()).index_add(0, cells_TK.flatten(), ones)
            rows_ME = rows_X.view_as(total_ME)
            total_ME += rows_ME
            self._sums_L3[layer, 1] += _overflow(rows_ME.sum(dim=0), self._pool_sizes[layer])
            self._sums_L3[layer, 2] += torch.special.entr(routing.probs_TE).sum(dtype=torch.float64)
            lost = dropped[layer] if dropped is not None else None
            if lost is not None:
                self._sums_L3[layer, 0] += lost

    def read(self, all_reduce: AllReduce | None = None) -> tuple[LayerStatistics, ...]:
        """Returns the counters of all ranks, per layer. Every rank must call it, whatever it counted.

        Args:
            all_reduce: Returns the sum of a float64 vector over the ranks; None on one process.
        """
        rows, sums_L3 = self._over_ranks(all_reduce)
        return tuple(
            _layer_statistics(rows_ME.tolist(), sums_3, pool_sizes=sizes, top_k=self._top_k)
            for rows_ME, sums_3, sizes in zip(rows, sums_L3.tolist(), self._pool_sizes, strict=True)
        )

    def state_dict(self, all_reduce: AllReduce | None = None) -> dict[str, list[Any]]:
        """The counters of all ranks as plain values, for a checkpoint between log lines. Every rank must call it."""
        rows, sums_L3 = self._over_ranks(all_reduce)
        return {"rows": [rows_ME.tolist() for rows_ME in rows], "sums": sums_L3.tolist()}

    def load_state_dict(self, state: Mapping[str, list[Any]], *, empty: bool = False) -> None:
        """Goes on from :meth:`state_dict`: the counters are those of all ranks, so all ranks but one stay ``empty``."""
        self.clear()
        if not empty:
            for own_ME, saved_ME in zip(self._rows_ME, state["rows"], strict=True):
                own_ME.copy_(torch.tensor(saved_ME))
            self._sums_L3.copy_(torch.tensor(state["sums"], dtype=torch.float64))

    def clear(self) -> None:
        """Starts a new interval."""
        for rows_ME in self._rows_ME:
            rows_ME.zero_()
        self._sums_L3.zero_()

    def _over_ranks(self, all_reduce: AllReduce | None) -> tuple[list[Tensor], Tensor]:
        """Rows per layer and sums over all ranks, on the CPU: one all-reduce of one flat vector."""
        parts = [*self._rows_ME, self._sums_L3]
        flat = torch.cat([part.flatten().double() for part in parts])
        flat = (flat if all_reduce is None else all_reduce(flat)).cpu()
        pieces = flat.split([part.numel() for part in parts])
        *rows, sums_L3 = (piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True))
        return [rows_ME.long() for rows_ME in rows], sums_L3


def _overflow(rows_E: Tensor, pool_sizes: Sequence[int]) -> Tensor:
    """Rows beyond ``max(round(1.25 * rows of the task group / its experts), 4)`` at any expert."""
    parts = []
    for rows_GE in by_pool(rows_E.double(), pool_sizes):
        capacity_G1 = (_CAPACITY_FACTOR * rows_GE.mean(dim=1, keepdim=True)).round().clamp(min=_SMALLEST_CAPACITY)
        parts.append((rows_GE - capacity_G1).clamp(min=0).sum())
    return torch.stack(parts).sum()


def _layer_statistics(
    rows_ME: list[list[int]], sums_3: list[float], *, pool_sizes: Sequence[int], top_k: int
) -> LayerStatistics:
    rows = [sum(column) for column in zip(*rows_ME, strict=True)]
    total = sum(rows)
    by_task_group = _by_task_group(rows, pool_sizes)
    num_tokens = total // top_k
    return LayerStatistics(
        num_tokens=num_tokens,
        rows_by_task=tuple(map(tuple, rows_ME)),
        rows=tuple(rows),
        dropped=round(sums_3[0]),
        dropped_at_1_25=round(sums_3[1]),
        mean_entropy=sums_3[2] / max(num_tokens, 1),
        load_variation=sum(sum(part) * _variation(part) for part in by_task_group if any(part)) / max(total, 1),
        task_load_variation=tuple(
            # A task has rows in its own task group only.
            next((_variation(part) for part in _by_task_group(row, pool_sizes) if any(part)), None)
            for row in rows_ME
        ),
        max_share=max(chain((max(part) / sum(part) for part in by_task_group if any(part)), (0.0,))),
    )


def _by_task_group(row: list[int], pool_sizes: Sequence[int]) -> list[list[int]]:
    stops = list(accumulate(pool_sizes))
    return [row[stop - size : stop] for stop, size in zip(stops, pool_sizes, strict=True)]


def _variation(row: list[int]) -> float:
    return pstdev(row) / fmean(row)
