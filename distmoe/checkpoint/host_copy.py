"""A copy of what a rank owns in host memory, from which files are written while training changes the original."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from distmoe.checkpoint.fragments import Fragment


class HostCopy:
    """One copy after the other, in the same memory.

    It costs each rank as many bytes of host memory as it owns of the state, 12 per trainable parameter over all ranks,
    from the first copy on: fresh memory at every save would take longer to hand out than to fill.

    Attributes:
        fragments: The copy.
    """

    def __init__(self) -> None:
        self.fragments: list[Fragment] = []
        self._buffers: dict[tuple[str, int], Tensor] = {}

    def take(self, fragments: list[Fragment]) -> None:
        """Copies the data of these fragments; the copy before is overwritten."""
        buffers = {(fragment.key, fragment.lo): self._buffer(fragment) for fragment in fragments}
        copies = []
        for fragment, buffer in zip(fragments, buffers.values(), strict=True):
            buffer.copy_(fragment.data, non_blocking=True)  # from a device all copies overlap: the memory is pinned
            copies.append(replace(fragment, data=buffer))
        if any(fragment.data.is_cuda for fragment in fragments):
            torch.cuda.current_stream().synchronize()
        self._buffers = buffers  # memory of tensors that are gone, as after merges, is given back
        self.fragments = copies

    def _buffer(self, fragment: Fragment) -> Tensor:
        data = fragment.data
        old = self._buffers.get((fragment.key, fragment.lo))
        if old is not None and old.shape == data.shape and old.dtype == data.dtype:
            return old
        return torch.empty(data.shape, dtype=data.dtype, pin_memory=data.is_cuda)
