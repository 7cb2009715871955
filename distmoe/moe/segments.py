"""How rows that are sorted by expert are cut, and which matmul goes over the cuts.

Rows of one expert form one *segment*. A grouped matmul reads the ends of segments on the device; a loop over segments
needs their lengths on the host.

Shape letters: R rows sorted by expert, e experts on this rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# grouped_mm wants every row to start at a multiple of 16 bytes, and has no float64.
_ALIGNMENT_BYTES = 16
_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Segments:
    """How ``R`` rows are cut into one segment per expert.

    Attributes:
        counts_e: Length of each segment, int64, on the rows' device; they sum to ``R``.
        num_rows: R.
        host_counts: The same lengths on the host; present if and only if the loop is used.
    """

    counts_e: Tensor
    num_rows: int
    host_counts: tuple[int, ...] | None = None

    @classmethod
    def looped(cls, counts_e: Tensor, num_rows: int, host_counts: Sequence[int]) -> Segments:
        """A loop over the segments."""
        assert sum(host_counts) == num_rows, "segments must cover the rows"
        return cls(counts_e, num_rows, tuple(host_counts))

    def offsets_e(self) -> Tensor:
        """End of each segment, int32. The last one is ``R``: grouped_mm leaves rows behind it undefined."""
        return self.counts_e.cumsum(0).to(torch.int32)

    def ids_R(self) -> Tensor:
        """Expert of each row, int64, without asking the host."""
        experts_e = torch.arange(self.counts_e.shape[0], device=self.counts_e.device)
        return experts_e.repeat_interleave(self.counts_e, output_size=self.num_rows)

    def slices(self) -> Iterator[tuple[int, slice]]:
        """Every expert with the rows of its segment, for the loop; the slice may be empty."""
        assert self.host_counts is not None
        start = 0
        for index, count in enumerate(self.host_counts):
            yield index, slice(start, start + count)
            start += count


def grouped_mm_works(dtype: torch.dtype, *widths: int) -> bool:
    """Whether grouped_mm takes this dtype and these row widths."""
    return dtype in _GROUPED_DTYPES and all(width * dtype.itemsize % _ALIGNMENT_BYTES == 0 for width in widths)
