"""One task's sub-network of a trained model: a stock transformers model where that can be, else the smallest export.

1. Routed layers whose gate reads the task alone become dense (:mod:`distmoe.checkpoint.folding`). Conditional scales
   and shifts become a part of the LayerNorm before them (:mod:`distmoe.checkpoint.export_conditional`).
2. If every layer is then dense and of one width, post-LN, and the heads read the first token, the whole is a BERT or a
   RoBERTa: written as ``BertForSequenceClassification`` or ``RobertaForSequenceClassification``, without any code.
3. Otherwise the self-contained code of ``checkpoint/hf`` is written with it. A layer that was folded to another width
   is a routed layer with one expert; one whose gate reads tokens keeps the experts of the task's group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distmoe.checkpoint.export_conditional import fold_task, is_table
from distmoe.checkpoint.export_conditional import reasons as conditional_reasons
from distmoe.checkpoint.export_hf import exported_tensors
from distmoe.checkpoint.export_routed import cut_routed
from distmoe.checkpoint.upcycle import PARTS
from distmoe.models.config import ModelConfig
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.routed_layer import RoutedLayer
from distmoe.models.shape import EncoderShape
from distmoe.moe.layer import RoutedFeedForward
from distmoe.nn.conditional.module import conditional_parameters
from distmoe.tasks import TaskGrouping, TaskSet


@dataclass(frozen=True)
class SubNetwork:
    """One task's part of a model.

    Attributes:
        task_id: The task.
        tensors: Under distmoe's names, as if the model had this task alone.
        routed_layers: Configuration entries of the layers that are still routed, as in an export.
        conditional: Configuration entry of the conditional modules that are left, as in an export; None: none.
        reasons: Why it is not a stock class; empty: it is one.
        counts: Part of the model -> parameters in the whole model, parameters kept.
    """

    task_id: int
    tensors: dict[str, Tensor]
    routed_layers: list[dict[str, Any]]
    conditional: dict[str, Any] | None
    reasons: tuple[str, ...]
    counts: dict[str, tuple[int, int]]

    @property
    def is_stock(self) -> bool:
        return not self.reasons

    @property
    def width(self) -> int:
        """Feed-forward width of the dense layers."""
        dense = [
            value for name, value in self.tensors.items() if name.endswith("feed_forward.w_out") and value.dim() == 2
        ]
        return int(dense[0].shape[1]) if dense else 0


@torch.no_grad()
def cut_task(
    model: MultiTaskEncoder, *, config: ModelConfig, tasks: TaskSet, grouping: TaskGrouping, task_id: int
) -> SubNetwork:
    """Cuts one task out of a whole, single-process model.

    Args:
        model: All experts of all task groups, float32, eval mode.
        config: Section ``model`` that it was built with.
        tasks: The run's tasks.
        grouping: Who shares which routed layer.
        task_id: The task.
    """
    spec = tasks[task_id]
    whole, entries, conditional = exported_tensors(model, config=config, grouping=grouping)
    tensors = {name.removeprefix("distmoe."): value for name, value in whole.items()}
    if conditional is not None:
        conditional, tensors = fold_task(
            conditional, tensors, task_id=task_id, layer_norm_eps=model.shape.layer_norm_eps
        )
    tensors["heads.weight"] = model.heads.weight[task_id : task_id + 1, : spec.num_outputs].detach().clone()
    tensors["heads.bias"] = model.heads.bias[task_id : task_id + 1, : spec.num_outputs].detach().clone()
    kept: list[dict[str, Any]] = []
    for entry in entries:
        if entry["unit"] == "block":
            tensors = _own_variant(tensors, entry, task_id)
            continue
        prefix = f"encoder.layers.{entry['layer']}.feed_forward."
        old = {name: tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        routed = model.encoder.layers[entry["layer"]].feed_forward
        assert isinstance(routed, RoutedFeedForward)
        inside = {name.removeprefix(prefix): value for name, value in old.items()}
        width = model.shape.intermediate_size
        new, rest = cut_routed(routed, entry, inside, task_id=task_id, dense_width=width)
        tensors |= {prefix + name: value for name, value in new.items()}
        kept += [rest] if rest else []
    kept, tensors = _without_equal_widths(kept, tensors, model.shape)
    reasons = (*_reasons(config, model.shape, kept), *conditional_reasons(conditional))
    return SubNetwork(task_id, tensors, kept, conditional, reasons, _counts(model, tensors))


def _own_variant(tensors: Mapping[str, Tensor], entry: dict[str, Any], task_id: int) -> dict[str, Tensor]:
    """The layer of the task's group in place of all of them."""
    own = next(index for index, members in enumerate(entry["task_groups"]) if task_id in members)
    layer = f"encoder.layers.{entry['layer']}."
    kept = {}
    for name, value in tensors.items():
        if not name.startswith(f"{layer}variants."):
            kept[name] = value
        elif name.startswith(f"{layer}variants.g{own}."):
            kept[layer + name.removeprefix(f"{layer}variants.g{own}.")] = value
    return kept


def _without_equal_widths(
    entries: list[dict[str, Any]], tensors: dict[str, Tensor], shape: EncoderShape
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Where every layer was routed and folded to one width, that width is the model's own."""
    widths = {entry["expert_size"] for entry in entries}
    all_folded = all(entry["gate"]["granularity"] == "task" for entry in entries)
    if len(entries) != shape.num_layers or len(widths) != 1 or not all_folded:
        return entries, tensors
    dense = {name: value for name, value in tensors.items() if not name.endswith("gate.table_ME")}
    return [], {
        name: value.squeeze(0) if name.rpartition(".")[2] in PARTS and ".feed_forward." in name else value
        for name, value in dense.items()
    }


def _reasons(config: ModelConfig, shape: EncoderShape, entries: list[dict[str, Any]]) -> tuple[str, ...]:
    """Why stock BERT and RoBERTa cannot compute it."""
    found = []
    if config.pooling != "cls":
        found.append(f"pooling is {config.pooling}: the stock heads read the first token's state")
    if shape.norm != "post":
        found.append(f"the encoder is {shape.norm}-LN: the stock classes are post-LN")
    if shape.position_offset not in (0, shape.pad_token_id + 1):
        found.append(
            f"positions begin at {shape.position_offset} with padding id {shape.pad_token_id}: RoBERTa begins at "
            f"{shape.pad_token_id + 1}"
        )
    by_token = [entry for entry in entries if entry["gate"]["granularity"] != "task"]
    if by_token:
        gate = by_token[0]["gate"]
        layers = ", ".join(str(entry["layer"]) for entry in by_token)
        found.append(f"gate {gate['kind']} chooses experts by {gate['granularity']} at layers {layers}")
    other = [entry for entry in entries if entry["gate"]["granularity"] == "task"]
    if other:
        widths = ", ".join(f"layer {entry['layer']}: {entry['expert_size']}" for entry in other)
        found.append(
            f"the task's experts are of another width together than a dense layer ({widths}; dense: "
            f"{shape.intermediate_size}): the stock classes have one width"
        )
    return tuple(found)


def _counts(model: MultiTaskEncoder, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Parameters of the whole model and of the sub-network, by part; the constant table of a folded layer is none."""
    routed = tuple(
        f"encoder.layers.{index}." + ("" if isinstance(layer, RoutedLayer) else "feed_forward.")
        for index, layer in enumerate(model.encoder.layers)
        if isinstance(layer, RoutedLayer) or isinstance(layer.feed_forward, RoutedFeedForward)
    )

    added = conditional_parameters(model)

    def part(name: str) -> str:
        if ".feed_forward.gate." in name:
            return "gates"
        if name.startswith(routed):
            return "routed layers"
        if name in added or is_table(name) or ".bottleneck." in name or ".chain." in name:
            return "conditional modules"
        return "heads" if name.startswith("heads.") else "shared by all tasks"

    parts = ("shared by all tasks", "routed layers", "gates", "heads")
    counts = {key: [0, 0] for key in (*parts, *(("conditional modules",) if added else ()))}
    for name, parameter in model.named_parameters():
        counts[part(name)][0] += parameter.numel()
    for name, value in tensors.items():
        if not name.endswith("gate.table_ME"):
            counts[part(name)][1] += value.numel()
    return {key: (whole, kept) for key, (whole, kept) in counts.items()}
