"""One task's part of a trained decoder: a stock dense or MoE class of transformers where one computes it exactly.

As :mod:`distmoe.checkpoint.subnetwork` does for encoders: layers whose gate reads the task alone become dense, the
others keep the experts of the task's group; a head per task becomes the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distmoe.checkpoint.decoder_stock import Stock, find_stock
from distmoe.checkpoint.export_decoder import decoder_tensors
from distmoe.checkpoint.export_routed import cut_routed
from distmoe.checkpoint.subnetwork import SubNetwork
from distmoe.checkpoint.upcycle import PARTS
from distmoe.models.config import ModelConfig
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.moe.layer import RoutedFeedForward
from distmoe.tasks import TaskGrouping


@dataclass(frozen=True)
class DecoderCut:
    """One task's part, and the stock class that computes it; None: the self-contained code does."""

    network: SubNetwork
    stock: Stock | None


@torch.no_grad()
def cut_decoder_task(
    model: MultiTaskDecoder, *, config: ModelConfig, grouping: TaskGrouping, task_id: int
) -> DecoderCut:
    """Cuts one task out of a whole, single-process model.

    Args:
        model: All experts of all task groups, float32, eval mode.
        config: Section ``model`` that it was built with.
        grouping: Who shares which routed layer.
        task_id: The task.
    """
    tensors, entries = decoder_tensors(model, config=config, grouping=grouping)
    heads_MVD = tensors.pop("heads.weight_MVD", None)
    if heads_MVD is not None:
        tensors["heads.weight_VD"] = heads_MVD[task_id].clone()
    kept: list[dict[str, Any]] = []
    for entry in entries:
        prefix = f"decoder.layers.{entry['layer']}.feed_forward."
        inside = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        routed = model.decoder.layers[entry["layer"]].feed_forward
        assert isinstance(routed, RoutedFeedForward)
        width = model.shape.intermediate_size
        new, rest = cut_routed(routed, entry, inside, task_id=task_id, dense_width=width)
        tensors |= {prefix + name: value for name, value in new.items()}
        kept += [rest] if rest else []
    kept, tensors = _of_one_width(kept, tensors, num_layers=model.shape.num_layers)
    stock, reasons = find_stock(model.shape, kept)
    return DecoderCut(SubNetwork(task_id, tensors, kept, None, reasons, _counts(model, tensors)), stock)


def _of_one_width(
    entries: list[dict[str, Any]], tensors: dict[str, Tensor], *, num_layers: int
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Where every layer was folded to one width, that width is the model's own."""
    widths = {entry["expert_size"] for entry in entries if entry["gate"]["granularity"] == "task"}
    if len(entries) != num_layers or len(widths) != 1:
        return entries, tensors
    dense = {name: value for name, value in tensors.items() if not name.endswith("gate.table_ME")}
    return [], {
        name: value.squeeze(0) if name.rpartition(".")[2] in PARTS and ".feed_forward." in name else value
        for name, value in dense.items()
    }


def _counts(model: MultiTaskDecoder, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Parameters of the whole model and of the task's part; the constant table of a folded layer is none."""
    routed = tuple(
        f"decoder.layers.{index}.feed_forward."
        for index, layer in enumerate(model.decoder.layers)
        if isinstance(layer.feed_forward, RoutedFeedForward)
    )

    def part(name: str) -> str:
        if ".feed_forward.gate." in name:
            return "gates"
        if name.startswith(routed):
            return "routed layers"
        return "heads" if name.startswith("heads.") else "shared by all tasks"

    whole = {name: parameter.numel() for name, parameter in model.named_parameters()}
    own = {name: value.numel() for name, value in tensors.items() if not name.endswith("gate.table_ME")}
    parts = ("shared by all tasks", "routed layers", "gates", "heads")
    return {
        key: (
            sum(count for name, count in whole.items() if part(name) == key),
            sum(count for name, count in own.items() if part(name) == key),
        )
        for key in parts
    }
