"""The order in which a block of ranks holds the experts of one layer.

A *slot* is a place for one expert in a block. Slots are numbered by (rank of the block, hosted task group, expert on
that rank), so that rows sorted by slot are sorted by destination rank first, and at a rank by pool. Hand-worked: a
block of two ranks hosts task group 0 (experts 0..3 of the layer) and task group 2 (experts 8..9)::

    rank            0           1
    pool        g0 g0 g2    g0 g0 g2
    expert       0  1  8     2  3  9
    slot         0  1  2     3  4  5

Shape letters: S slots of the block, N rows to send (tokens x choices), P ranks of the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Slot of an expert that the block does not hold: an index that no gather accepts.
NOT_HOSTED = -1


@dataclass(frozen=True)
class SlotLayout:
    """Slots of a block.

    Attributes:
        pool_sizes: Experts of each hosted task group over the block, in hosting order.
        ep_rank: Position of this rank in the block.
        ep_size: Ranks of the block; divides every pool size.
    """

    pool_sizes: tuple[int, ...]
    ep_rank: int = 0
    ep_size: int = 1

    @property
    def local_sizes(self) -> tuple[int, ...]:
        """Experts of each hosted task group on one rank."""
        return tuple(size // self.ep_size for size in self.pool_sizes)

    @property
    def slots_per_rank(self) -> int:
        return sum(self.local_sizes)

    @property
    def num_slots(self) -> int:
        return self.slots_per_rank * self.ep_size

    def slots_of_pool(self, pool: int) -> list[int]:
        """Slot of each expert of a hosted task group, in the task group's order."""
        local = self.local_sizes[pool]
        before = sum(self.local_sizes[:pool])
        return [i // local * self.slots_per_rank + before + i % local for i in range(self.pool_sizes[pool])]

    def table(self, first_experts: Sequence[int], num_experts: int) -> list[int]:
        """Slot of every expert of the layer; :data:`NOT_HOSTED` for experts of other blocks.

        Args:
            first_experts: Index in the layer of the first expert of each hosted task group.
            num_experts: Experts of the layer.
        """
        table = [NOT_HOSTED] * num_experts
        for pool, first in enumerate(first_experts):
            slots = self.slots_of_pool(pool)
            table[first : first + len(slots)] = slots
        return table

    def pool_of_slot(self, device: torch.device | str = "cpu") -> Tensor:
        """Index among the hosted task groups of each slot, int64 ``[S]``; filled on the device, nothing is copied."""
        parts = [torch.full((size,), pool, device=device) for pool, size in enumerate(self.local_sizes)]
        return torch.cat(parts).repeat(self.ep_size)


def sort_by_slot(slots_TK: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Orders the (token, choice) pairs by slot, inside a slot by token.

    Returns:
        ``order_N``: flat pair index of each row, int64; ``counts_S``: rows of each slot, int64. Neither asks the host.
    """
    slots_N = slots_TK.flatten()
    # 16 bits are enough for any slot and halve the passes of a radix sort.
    keys_N = slots_N.to(torch.int16) if num_slots < 2**15 else slots_N
    order_N = torch.argsort(keys_N, stable=True)
    counts_S = slots_N.new_zeros(num_slots).scatter_add_(0, slots_N, torch.ones_like(slots_N))
    return order_N, counts_S
