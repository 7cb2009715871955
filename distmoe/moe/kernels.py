"""Matrix products over rows that are sorted by expert, and their adjoints: pure functions, no autograd.

Rows of one expert form one *segment*. Two equal implementations stand behind each function: one grouped matmul
(:func:`torch.nn.functional.grouped_mm`), which never asks the host how long a segment is, and a loop over segments,
which needs the lengths as Python integers. :class:`Segments` says which one is used.

Shape letters: R rows sorted by expert, e experts on this rank, I input width, O output width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# grouped_mm wants every row to start at a multiple of 16 bytes.
_ALIGNMENT_BYTES = 16
_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Columns of the matrix of ones that turns a sum over rows into a matmul: 8 of any supported dtype are aligned.
_ONES = 8


@dataclass(frozen=True)
class Segments:
    """How ``R`` rows are cut into one segment per expert.

    Attributes:
        offsets_e: End of each segment, int32, on the rows' device. The last one is ``R``: grouped_mm leaves rows
            behind it undefined.
        num_rows: R.
        host_counts: Length of each segment; present if and only if the loop is used.
    """

    offsets_e: Tensor
    num_rows: int
    host_counts: tuple[int, ...] | None = None

    @classmethod
    def grouped(cls, counts_e: Tensor, num_rows: int) -> Segments:
        """One grouped matmul; the host never reads ``counts_e``."""
        return cls(counts_e.cumsum(0).to(torch.int32), num_rows)

    @classmethod
    def looped(cls, counts_e: Tensor, num_rows: int, host_counts: Sequence[int]) -> Segments:
        """A loop over the segments."""
        assert sum(host_counts) == num_rows, "segments must cover the rows"
        return cls(counts_e.cumsum(0).to(torch.int32), num_rows, tuple(host_counts))

    @property
    def num_segments(self) -> int:
        return self.offsets_e.shape[0]

    def slices(self) -> Iterator[tuple[int, slice]]:
        """Segments that have rows, with the index of their expert."""
        start = 0
        for index, count in enumerate(self.host_counts or ()):
            if count:
                yield index, slice(start, start + count)
            start += count

    def zero_empty_(self, values_eX: Tensor) -> None:
        """Zeroes the entries of experts without rows, which a loop over :meth:`slices` leaves as they are."""
        for index, count in enumerate(self.host_counts or ()):
            if not count:
                values_eX[index].zero_()

    def ids_R(self) -> Tensor:
        """Expert of each row, int64, without asking the host."""
        counts_e = torch.diff(self.offsets_e, prepend=self.offsets_e.new_zeros(1))
        experts_e = torch.arange(self.num_segments, device=self.offsets_e.device)
        return experts_e.repeat_interleave(counts_e, output_size=self.num_rows)


def grouped_mm_works(dtype: torch.dtype, *widths: int) -> bool:
    """Whether grouped_mm takes this dtype and row widths: no float64, rows aligned to 16 bytes."""
    return dtype in _GROUPED_DTYPES and all(width * dtype.itemsize % _ALIGNMENT_BYTES == 0 for width in widths)


def segment_linear(x_RI: Tensor, weight_eOI: Tensor, bias_eO: Tensor | None, segments: Segments) -> Tensor:
    """Each row through its own expert's linear map: ``y[r] = W[e(r)] x[r] + b[e(r)]``, ``[R, O]``."""
    if segments.host_counts is None:
        y_RO = F.grouped_mm(x_RI, weight_eOI.transpose(1, 2), offs=segments.offsets_e)
        return y_RO if bias_eO is None else y_RO.add_(bias_eO.index_select(0, segments.ids_R()))
    y_RO = x_RI.new_empty(segments.num_rows, weight_eOI.shape[1])
    for index, rows in segments.slices():
        if bias_eO is None:
            torch.mm(x_RI[rows], weight_eOI[index].t(), out=y_RO[rows])
        else:
            torch.addmm(bias_eO[index], x_RI[rows], weight_eOI[index].t(), out=y_RO[rows])
    return y_RO


def segment_linear_input_grad(grad_RO: Tensor, weight_eOI: Tensor, segments: Segments) -> Tensor:
    """Gradient of :func:`segment_linear` with respect to its rows, ``[R, I]``."""
    if segments.host_counts is None:
        return F.grouped_mm(grad_RO, weight_eOI, offs=segments.offsets_e)
    grad_RI = grad_RO.new_empty(segments.num_rows, weight_eOI.shape[2])
    for index, rows in segments.slices():
        torch.mm(grad_RO[rows], weight_eOI[index], out=grad_RI[rows])
    return grad_RI


def segment_outer(grad_RO: Tensor, x_RI: Tensor, segments: Segments) -> Tensor:
    """Gradient of :func:`segment_linear` with respect to the weights, ``[e, O, I]``; 0 for an empty segment."""
    if segments.host_counts is None:
        return F.grouped_mm(grad_RO.t(), x_RI, offs=segments.offsets_e)
    grad_eOI = grad_RO.new_empty(segments.num_segments, grad_RO.shape[1], x_RI.shape[1])
    segments.zero_empty_(grad_eOI)
    for index, rows in segments.slices():
        torch.mm(grad_RO[rows].t(), x_RI[rows], out=grad_eOI[index])
    return grad_eOI


def segment_sum(grad_RO: Tensor, segments: Segments) -> Tensor:
    """Gradient of :func:`segment_linear` with respect to the biases, ``[e, O]``; 0 for an empty segment.

    With the grouped matmul the sum is a product with ones: no atomic additions, so it is deterministic, and low
    precisions accumulate in float32.
    """
    if segments.host_counts is None:
        ones_RX = grad_RO.new_ones(segments.num_rows, _ONES)
        return F.grouped_mm(ones_RX.t(), grad_RO, offs=segments.offsets_e)[:, 0].contiguous()
    grad_eO = grad_RO.new_empty(segments.num_segments, grad_RO.shape[1])
    segments.zero_empty_(grad_eO)
    for index, rows in segments.slices():
        torch.sum(grad_RO[rows], dim=0, out=grad_eO[index])
    return grad_eO
