"""A flat piece of a global tensor, as ``torch.distributed.checkpoint`` wants to see it.

Nothing is gathered: a rank hands over the pieces that it owns, and whoever reads asks for other pieces of the same
global tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from distmoe.checkpoint.global_view import GlobalView
from distmoe.checkpoint.rectangles import Rectangle


@dataclass(frozen=True)
class Fragment:
    """Elements ``[lo, lo + data.numel())`` of a rank's row-major tensor.

    Attributes:
        key: Entry of the checkpoint: ``fp32/``, ``exp_avg/``, ``exp_avg_sq/``, ``frozen/`` or ``buffer/`` and the name.
        view: Where the rank's tensor lies in the global one.
        lo: First flat index in the rank's tensor.
        data: One-dimensional, contiguous; shared with the training state, so that reading fills it in place. May be
            empty: the rank owns nothing of the tensor.
    """

    key: str
    view: GlobalView
    lo: int
    data: Tensor

    def chunks(self) -> list[tuple[tuple[int, ...], Rectangle]]:
        """Rectangles of the rank's tensor, each with its offset in the global tensor."""
        return list(self.view.chunks(self.lo, self.lo + self.data.numel()))


class FragmentTensor(Tensor):
    """The fragment's data with the protocol by which DCP plans, writes and reads chunks."""

    fragment: Fragment

    @staticmethod
    def wrap(fragment: Fragment) -> FragmentTensor:
        tensor = fragment.data.detach().as_subclass(FragmentTensor)
        tensor.fragment = fragment
        return tensor

    def size(self, dim: int | None = None) -> Any:  # type: ignore[override]
        """The global size: DCP compares it with the stored one before it reads anything."""
        shape = torch.Size(self.fragment.view.global_shape)
        return shape if dim is None else shape[dim]

    def __create_write_items__(self, key: str, _: object) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.fragment.data.dtype)
        return [
            WriteItem(
                index=MetadataIndex(key, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.size()),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(offsets=torch.Size(offset), sizes=torch.Size(part.size))
            for offset, part in self.fragment.chunks()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        for offset, part in self.fragment.chunks():
            if index.offset is None or tuple(index.offset) == offset:
                lo = self.fragment.lo
                return self.fragment.data[part.start - lo : part.stop - lo].view(part.size)
        raise KeyError(f"{index}: this rank owns no such chunk")


def state_dict_of(fragments: list[Fragment]) -> dict[str, Tensor]:
    """What ``torch.distributed.checkpoint`` saves or loads: one entry per key; empty fragments are left out."""
    return {fragment.key: FragmentTensor.wrap(fragment) for fragment in fragments if fragment.data.numel()}
