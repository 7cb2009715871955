"""Which ranks hold the same experts, and which hold them all once: pure arithmetic on the spans of a layer.

Spans are consecutive, so how many blocks each has says everything. Drawn: 8 ranks in 4 blocks of ep_size 2, two spans
of two blocks each; position = rank % 2::

    block     0     1     2     3       expert-data-parallel of rank 5: {5 7}     its position in its span's blocks
    ranks    0 1   2 3   4 5   6 7      expert-parallel of rank 5:      {0 1 4 5} the first block of every span,
    span     `-- 0 --'   `-- 1 --'                                                as rank 5 is in the first of its own
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from distmoe.parallel.placement import Placement


@dataclass(frozen=True)
class Layout:
    """How the blocks of a layer are cut into spans.

    Attributes:
        ep_size: Ranks of a block.
        span_sizes: Blocks of each span, in block order.
    """

    ep_size: int
    span_sizes: tuple[int, ...]

    @property
    def name(self) -> str:
        """``ep_size_2`` for one span, ``ep_size_2_3-1`` for spans of 3 and 1 blocks.

        DeepSpeed reads the part between the second and third underscore as a number.
        """
        tag = "" if len(self.span_sizes) == 1 else "_" + "-".join(map(str, self.span_sizes))
        return f"ep_size_{self.ep_size}{tag}"

    @property
    def num_ranks(self) -> int:
        return sum(self.span_sizes) * self.ep_size

    @property
    def uniform(self) -> bool:
        """Whether all spans have the same number of blocks."""
        return len(set(self.span_sizes)) == 1

    def edp_ranks(self, rank: int) -> tuple[int, ...]:
        """Ranks with a copy of ``rank``'s experts: its position in every block of its span."""
        return tuple(block * self.ep_size + rank % self.ep_size for block in self._span_of(rank // self.ep_size))

    def ep_ranks(self, rank: int) -> tuple[int, ...]:
        """The block with the same index in every span; just the own block when spans have different sizes."""
        own = rank // self.ep_size
        index = own - self._span_of(own).start
        blocks = [span.start + index for span in self._spans()] if self.uniform else [own]
        return tuple(block * self.ep_size + position for block in blocks for position in range(self.ep_size))

    def rank_sets(self) -> Iterator[tuple[int, ...]]:
        """Every set of ranks that needs a process group: blocks, and both kinds above."""
        for rank in range(self.num_ranks):
            first = rank - rank % self.ep_size
            yield tuple(range(first, first + self.ep_size))
            yield self.ep_ranks(rank)
            yield self.edp_ranks(rank)

    def _spans(self) -> list[range]:
        return [
            range(stop - size, stop) for stop, size in zip(accumulate(self.span_sizes), self.span_sizes, strict=True)
        ]

    def _span_of(self, block: int) -> range:
        return next(span for span in self._spans() if block in span)


def layouts_of(placement: Placement) -> dict[Layout, tuple[int, ...]]:
    """The distinct layouts of a placement, each with the routed layers that have it."""
    layers: dict[Layout, tuple[int, ...]] = {}
    for layer, spans in enumerate(placement.layers):
        layout = Layout(placement.ep_size, tuple(len(span.blocks) for span in spans))
        layers[layout] = (*layers.get(layout, ()), layer)
    return layers


def one_span(placement: Placement) -> Layout:
    """The layout of a layer that every block hosts alike."""
    return Layout(placement.ep_size, (placement.num_blocks,))
