"""Sums over the optimizer steps since the last line of the log, kept on the device.

Reading them costs one all-reduce and one host synchronisation, at log steps only. Sums are float64: float32 losses of
like size then add up exactly in any order, so a run resumed in the middle of a window logs the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from distmoe.training.agreement import is_distributed
from distmoe.training.objective import LossBreakdown


@dataclass(frozen=True)
class WindowSummary:
    """Means over a window, over all ranks; host values.

    Attributes:
        loss: Mixture loss with auxiliary losses.
        task_loss: Mixture loss alone.
        task_losses: Mean unweighted loss per task id; ``None`` where the window held no example of it.
        examples: Examples seen per task id.
        tokens: Real tokens seen.
        counters: Sums of the extra counters.
        auxiliary: Global auxiliary losses, unweighted.
    """

    loss: float
    task_loss: float
    task_losses: tuple[float | None, ...]
    examples: tuple[int, ...]
    tokens: int
    counters: tuple[int, ...]
    auxiliary: dict[str, float]


class LossWindow:
    """Accumulates :class:`LossBreakdown` values.

    Layout of the sum vector: loss, task loss, micro-batches, tokens, N loss sums, N counts, auxiliary values in the
    order of ``auxiliary_names``, counters.

    Args:
        num_tasks: N.
        auxiliary_names: Auxiliary losses that every micro-batch has.
        num_counters: Extra numbers to add up over ranks, for example bytes per layer.
        device: Where losses are.
        process_group: Ranks that see different batches; None: all.
    """

    def __init__(
        self,
        num_tasks: int,
        auxiliary_names: tuple[str, ...] = (),
        *,
        num_counters: int = 0,
        device: torch.device | str = "cpu",
        process_group: ProcessGroup | None = None,
    ) -> None:
        self._process_group = process_group
        self._num_tasks, self._names, self._num_counters = num_tasks, auxiliary_names, num_counters
        size = 4 + 2 * num_tasks + len(auxiliary_names) + num_counters
        self._local = torch.zeros(size, dtype=torch.float64, device=device)
        self._global = torch.zeros_like(self._local)

    def add(self, losses: LossBreakdown, num_tokens: int) -> None:
        """Adds one micro-batch without synchronising with the device."""
        parts = [losses.total.detach(), losses.task, torch.ones_like(losses.task), torch.zeros_like(losses.task)]
        values = [torch.stack(parts).double(), losses.sum_by_task_N.double(), losses.count_by_task_N.double()]
        if self._names:
            values.append(torch.stack([losses.auxiliary[name] for name in self._names]).double())
        self._local[: self._local.numel() - self._num_counters] += torch.cat(values)
        self._local[3] += num_tokens

    def count(self, counters: Sequence[int]) -> None:
        """Adds to the extra counters of this rank."""
        if self._num_counters:
            self._local[-self._num_counters :] += self._local.new_tensor(counters)

    def reduce(self) -> None:
        """Moves this rank's sums into the sums over all ranks. Collective."""
        if is_distributed():
            dist.all_reduce(self._local, group=self._process_group)
        self._global += self._local
        self._local.zero_()

    def summary(self) -> WindowSummary | None:
        """Reduces, reads and clears the window; ``None`` if it is empty. Collective."""
        self.reduce()
        values = self._global.tolist()
        self._global.zero_()
        num_micro_batches, end = values[2], 4 + self._num_tasks
        if num_micro_batches == 0:
            return None
        sums, counts = values[4:end], values[end : end + self._num_tasks]
        middle = len(values) - self._num_counters
        auxiliary = values[end + self._num_tasks : middle]
        return WindowSummary(
            loss=values[0] / num_micro_batches,
            task_loss=values[1] / num_micro_batches,
            task_losses=tuple(s / c if c else None for s, c in zip(sums, counts, strict=True)),
            examples=tuple(int(count) for count in counts),
            tokens=int(values[3]),
            counters=tuple(int(value) for value in values[middle:]),
            auxiliary={name: value / num_micro_batches for name, value in zip(self._names, auxiliary, strict=True)},
        )

    def state_dict(self) -> dict[str, list[float]]:
        """The reduced sums, equal on all ranks. Collective."""
        self.reduce()
        return {"sums": self._global.tolist()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self._local.zero_()
        self._global.copy_(torch.tensor(state["sums"], dtype=torch.float64))
