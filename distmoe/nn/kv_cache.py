"""Keys and values of the positions that a decoder has already seen.

Shape letters: B sequences, S new positions, L slots, h key-value heads, d width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeyValueCache:
    """One layer's cache: slot ``l`` of a row holds position ``l``.

    Attributes:
        keys_BhLd, values_BhLd: Zero where nothing was written yet; a mask must hide those slots.
    """

    keys_BhLd: Tensor
    values_BhLd: Tensor

    def extended(self, keys_BhSd: Tensor, values_BhSd: Tensor, positions_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Writes new positions, in place, and returns all slots.

        Rows stand at different positions, so every row writes into slots of its own.
        """
        index = positions_BS[:, None, :, None].expand_as(keys_BhSd)
        self.keys_BhLd.scatter_(2, index, keys_BhSd.to(self.keys_BhLd.dtype))
        self.values_BhLd.scatter_(2, index, values_BhSd.to(self.values_BhLd.dtype))
        return self.keys_BhLd, self.values_BhLd


def empty_cache(*, num_rows: int, num_slots: int, num_kv_heads: int, head_size: int, like: Tensor) -> KeyValueCache:
    """Returns a cache without any position, of the dtype and on the device of ``like``."""
    shape = (num_rows, num_kv_heads, num_slots, head_size)
    return KeyValueCache(
        torch.zeros(shape, dtype=like.dtype, device=like.device),
        torch.zeros(shape, dtype=like.dtype, device=like.device),
    )
