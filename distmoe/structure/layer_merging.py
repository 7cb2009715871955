"""Bringing whole encoder layers to one order before they are averaged: attention heads and hidden units.

Neither heads nor hidden units have an order: permuting a head in queries, keys, values and the columns of the output
projection leaves attention as it is, as permuting a hidden unit does in a feed-forward part. Layers that started as
copies keep their order; see :mod:`distmoe.structure.alignment`.

Tensors of a layer go by their names inside it: ``attention.qkv.weight``, ``feed_forward.w_in`` and so on.

Shape letters: D model width, H heads, d width of a head, F hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distmoe.structure.alignment import align, best_permutation
from distmoe.structure.feed_forward_tensors import FeedForwardTensors

_FEED_FORWARD = "feed_forward."


@dataclass(frozen=True)
class LayerOrder:
    """Which head and which hidden unit comes to which place.

    Attributes:
        heads_H: int64.
        units_F: int64.
    """

    heads_H: Tensor
    units_F: Tensor


def align_layer(reference: Mapping[str, Tensor], other: Mapping[str, Tensor], *, num_heads: int) -> LayerOrder:
    """The order that brings ``other`` nearest to ``reference``, by its weights."""
    first, second = _head_weights(reference, num_heads), _head_weights(other, num_heads)
    return LayerOrder(best_permutation(first @ second.T), align(_feed_forward(reference), _feed_forward(other)))


def permute_layer(tensors: Mapping[str, Tensor], order: LayerOrder, *, num_heads: int) -> dict[str, Tensor]:
    """The layer in another order: weights, or either of Adam's moments."""

    def heads_of_rows(packed: Tensor) -> Tensor:
        return packed.unflatten(0, (3, num_heads, -1))[:, order.heads_H].flatten(0, 2)

    permuted = dict(tensors)
    permuted["attention.qkv.weight"] = heads_of_rows(tensors["attention.qkv.weight"])
    permuted["attention.qkv.bias"] = heads_of_rows(tensors["attention.qkv.bias"])
    columns = tensors["attention.out.weight"].unflatten(1, (num_heads, -1))
    permuted["attention.out.weight"] = columns[:, order.heads_H].flatten(1, 2)
    own = _feed_forward(tensors).permuted(order.units_F).by_name()
    return permuted | {_FEED_FORWARD + key: tensor for key, tensor in own.items()}


def _head_weights(tensors: Mapping[str, Tensor], num_heads: int) -> Tensor:
    """All weights of each head in one row, ``[H, C]`` float64."""
    qkv = tensors["attention.qkv.weight"].double().unflatten(0, (3, num_heads, -1)).transpose(0, 1).flatten(1)
    bias = tensors["attention.qkv.bias"].double().unflatten(0, (3, num_heads, -1)).transpose(0, 1).flatten(1)
    out = tensors["attention.out.weight"].double().unflatten(1, (num_heads, -1)).transpose(0, 1).flatten(1)
    return torch.cat([qkv, bias, out], dim=1)


def _feed_forward(tensors: Mapping[str, Tensor]) -> FeedForwardTensors:
    return FeedForwardTensors.of(
        {name.removeprefix(_FEED_FORWARD): tensor for name, tensor in tensors.items() if name.startswith(_FEED_FORWARD)}
    )
