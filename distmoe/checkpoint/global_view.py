"""Where a rank's tensor lies inside the global tensor of the same name.

Checkpoints know global tensors only. Dense parameters are global as they are, or cut over tensor ranks; the stacked
experts of a pool are rows ``first_expert ..`` of a tensor with one row per expert of the task group. Names are those
of the model: layer and task group are in the path (``encoder.layers.1.feed_forward.pools.g0.w_in``), the expert is the
row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

from distmoe.checkpoint.rectangles import Rectangle, rectangles
from distmoe.moe.experts import ExpertPool
from distmoe.parallel.rank_grid import RankGrid

Shape = tuple[int, ...]


@dataclass(frozen=True)
class GlobalView:
    """One parameter or buffer of this rank.

    Attributes:
        name: Global name.
        local_shape: Shape on this rank.
        global_shape: Shape over all ranks.
        offset: First index of the local tensor in the global one, per dimension.
        sections: The first dimension is made of so many equal parts, gate and up say, and the rank has an equal run of
            each: of the first from ``offset[0]`` on, of the others as far into them.
    """

    name: str
    local_shape: Shape
    global_shape: Shape
    offset: Shape
    sections: int = 1

    def chunks(self, lo: int, hi: int) -> Iterator[tuple[Shape, Rectangle]]:
        """Rectangles that cover elements ``[lo, hi)`` of the row-major local tensor, in order.

        Yields:
            The rectangle's offset in the global tensor, and the rectangle: its flat range is that of the local tensor.
        """
        if self.sections == 1:
            for part in rectangles(self.local_shape, lo, hi):
                yield tuple(a + b for a, b in zip(self.offset, part.offset, strict=True)), part
            return
        rows = self.local_shape[0] // self.sections
        spacing, width = self.global_shape[0] // self.sections, prod(self.local_shape[1:])
        for section in range(self.sections):
            first = section * rows * width
            start, stop = max(lo - first, 0), min(hi - first, rows * width)
            for part in rectangles((rows, *self.local_shape[1:]), start, stop):
                row = section * spacing + self.offset[0] + part.offset[0]
                rest = (a + b for a, b in zip(self.offset[1:], part.offset[1:], strict=True))
                yield (row, *rest), Rectangle(part.offset, part.size, part.start + first, part.stop + first)

    def take(self, whole: Tensor) -> Tensor:
        """The rank's part of a global tensor, without a copy where it is one run."""
        assert tuple(whole.shape) == self.global_shape, f"{self.name}: {tuple(whole.shape)} is not {self.global_shape}"
        if self.sections == 1:
            return whole[tuple(slice(a, a + b) for a, b in zip(self.offset, self.local_shape, strict=True))]
        rows = self.local_shape[0] // self.sections
        run = whole.unflatten(0, (self.sections, -1)).narrow(1, self.offset[0], rows)
        return run.flatten(0, 1)


def replicated(name: str, shape: Shape) -> GlobalView:
    """The view of a tensor that every rank holds as a whole."""
    return GlobalView(name, shape, shape, (0,) * len(shape))


def expert_rows(name: str, shape: Shape, *, num_experts: int, first_expert: int) -> GlobalView:
    """The view of stacked experts: ``shape[0]`` rows of ``num_experts``, from ``first_expert`` on."""
    return GlobalView(name, shape, (num_experts, *shape[1:]), (first_expert, *(0 for _ in shape[1:])))


def tensor_slice(name: str, shape: Shape, *, dim: int, sections: int, size: int, grid: RankGrid) -> GlobalView:
    """The view of a matrix that is cut over tensor ranks, all sections of a dimension alike.

    Args:
        name: Global name.
        shape: On this rank.
        dim: What is cut.
        sections: Parts of that dimension.
        size: Of that dimension over all ranks; with one section the last rank may have fewer than the others.
        grid: The rank.
    """
    assert dim == 0 or sections == 1, "sections are rows"
    whole, offset = list(shape), [0] * len(shape)
    whole[dim], offset[dim] = size, grid.tensor_rank * -(-size // (sections * grid.tensor))
    return GlobalView(name, shape, tuple(whole), tuple(offset), sections)


def global_views(
    model: nn.Module, shapes: Mapping[str, Shape] | None = None, *, grid: RankGrid | None = None
) -> dict[str, GlobalView]:
    """Returns the view of every parameter and persistent buffer, by name, in the model's order.

    Args:
        model: Any module; pools are recognised by their class, slices by megatron-core's marks on the parameter.
        shapes: Local shapes of parameters by name, where the tensors no longer tell (ZeRO-3 empties them).
        grid: Whose slices these are; None: nothing is cut over tensor ranks.
    """
    views: dict[str, GlobalView] = {}
    for path, module in model.named_modules():
        tensors = list(module.named_parameters(recurse=False))
        tensors += [
            (name, buffer)
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set
        ]
        for leaf, tensor in tensors:
            name = f"{path}.{leaf}" if path else leaf
            shape = tuple((shapes or {}).get(name, tensor.shape))
            if isinstance(module, ExpertPool):
                views[name] = expert_rows(name, shape, num_experts=module.num_experts, first_expert=module.first_expert)
            elif getattr(tensor, "tensor_model_parallel", False):
                assert grid is not None, f"{name} is a slice, of which rank?"
                cut: Any = tensor  # as megatron-core marks it
                views[name] = tensor_slice(
                    name,
                    shape,
                    dim=cut.partition_dim,
                    sections=cut.partition_stride,
                    size=cut.partition_whole,
                    grid=grid,
                )
            else:
                views[name] = replicated(name, shape)
    return views
