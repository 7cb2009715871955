"""Cuts a flat range of a row-major tensor into rectangles.

ZeRO owns flat ranges ``[lo, hi)`` of parameters, which may begin and end in the middle of a row;
``torch.distributed.checkpoint`` stores rectangles. Hand-worked, shape (3, 4), range [2, 9)::

    . . a a      head  offset (0, 2)  size (1, 2)  flat [2, 4)
    b b b b      body  offset (1, 0)  size (1, 4)  flat [4, 8)
    c . . .      tail  offset (2, 0)  size (1, 1)  flat [8, 9)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Rectangle:
    """A rectangle whose elements are exactly the flat range ``[start, stop)`` of the tensor.

    Attributes:
        offset: First index in each dimension.
        size: Extent in each dimension.
        start: Flat index of its first element.
        stop: Flat index after its last element.
    """

    offset: tuple[int, ...]
    size: tuple[int, ...]
    start: int
    stop: int


def rectangles(shape: Sequence[int], lo: int, hi: int) -> list[Rectangle]:
    """Returns at most ``2 N - 1`` rectangles of an N-dimensional tensor, in flat order, that cover ``[lo, hi)`` once.

    Args:
        shape: Shape of the row-major tensor; N may be 0.
        lo: First flat index.
        hi: Flat index after the last.
    """
    if lo >= hi:
        return []
    if not shape:
        return [Rectangle((), (), 0, 1)]
    if len(shape) == 1:
        return [Rectangle((lo,), (hi - lo,), lo, hi)]
    row = prod(shape[1:])
    first, last = lo // row, hi // row
    if first == last or (last == first + 1 and hi % row == 0 and lo % row != 0):
        return _inside_row(shape, first, row, lo, hi)
    parts = []
    if lo % row:
        parts += rectangles(shape, lo, (first + 1) * row)
        first += 1
    if last > first:
        offset = (first, *(0 for _ in shape[1:]))
        parts.append(Rectangle(offset, (last - first, *shape[1:]), first * row, last * row))
    if hi % row:
        parts += rectangles(shape, last * row, hi)
    return parts


def _inside_row(shape: Sequence[int], index: int, row: int, lo: int, hi: int) -> list[Rectangle]:
    base = index * row
    return [
        Rectangle((index, *part.offset), (1, *part.size), part.start + base, part.stop + base)
        for part in rectangles(shape[1:], lo - base, hi - base)
    ]
