"""A routed layer in the form in which it is exported, and what one task keeps of it.

Names of tensors end with the letters of their axes, and that is how they are cut: M tasks, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distmoe.checkpoint.export_gates import exported_gate
from distmoe.checkpoint.folding import folded
from distmoe.checkpoint.upcycle import PARTS
from distmoe.moe.config import MoEConfig
from distmoe.moe.layer import RoutedFeedForward


def exported_routed(
    routed: RoutedFeedForward, *, moe: MoEConfig, layer: int, task_groups: Sequence[Sequence[int]]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns a layer's entry in the exported configuration, and the tensors of its gate and experts.

    Args:
        routed: All experts of all task groups.
        moe: Section ``model.moe``.
        layer: Its index in the model.
        task_groups: Its partition.
    """
    gate_entry, gate_tensors = exported_gate(routed.gate, moe.gate.kind)
    tensors = {f"gate.{name}": value for name, value in gate_tensors.items()}
    pools = [routed.pools[f"g{task_group}"] for task_group in range(len(routed.pools))]
    # One tensor over all experts: task group 0's first, then task group 1's, ...
    for part in PARTS:
        if getattr(pools[0], part) is not None:
            tensors[part] = torch.cat([getattr(pool, part) for pool in pools])
    shared = routed.shared_mlp
    entry = {
        "layer": layer,
        "unit": "ffn",
        "task_groups": [list(task_group) for task_group in task_groups],
        "num_experts": tensors["w_out"].shape[0],
        "pool_sizes": [pool.num_experts for pool in pools],
        "expert_size": tensors["w_out"].shape[2],
        "shared_size": 0 if shared is None else shared.w_out.shape[1],
        "top_k": moe.top_k,
        "combine": moe.combine,
        "gate": gate_entry,
    }
    return entry, tensors


def cut_routed(
    routed: RoutedFeedForward, entry: dict[str, Any], tensors: Mapping[str, Tensor], *, task_id: int, dense_width: int
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Returns what one task keeps of a routed layer, and its new entry; None: it is a dense layer now.

    Args:
        routed: The layer.
        entry: As exported.
        tensors: All of the layer's exported tensors, also of its shared part, under names inside the layer.
        task_id: The task.
        dense_width: Of the model's dense layers; a part of another width stays a routed layer with one expert.
    """
    if entry["gate"]["granularity"] == "task":
        return _folded(routed, entry, task_id, dense_width=dense_width)
    return _cut(tensors, entry, task_id)


def _folded(
    routed: RoutedFeedForward, entry: dict[str, Any], task_id: int, *, dense_width: int
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    tensors = {part: value.detach().clone() for part, value in folded(routed, task_id=task_id).present().items()}
    width = tensors["w_out"].shape[1]
    if width == dense_width:
        return tensors, None
    gate = {"kind": entry["gate"]["kind"], "form": "table", "granularity": "task"}
    single = {part: value.unsqueeze(0) for part, value in tensors.items()} | {"gate.table_ME": torch.zeros(1, 1)}
    return single, _entry_of_one(entry, gate, num_experts=1, width=width)


def _cut(
    tensors: Mapping[str, Tensor], entry: dict[str, Any], task_id: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Only the experts of the task's group, and the task's rows of the gate."""
    groups = entry["task_groups"]
    group = next(index for index, members in enumerate(groups) if task_id in members)
    first, share = sum(entry["pool_sizes"][:group]), entry["pool_sizes"][group]
    rows = {"M": slice(task_id, task_id + 1), "E": slice(first, first + share)}
    cut = {}
    for name, value in tensors.items():
        if name in PARTS:
            cut[name] = value[rows["E"]].clone()
        elif name.startswith("gate."):
            axes = name.rpartition("_")[2]
            cut[name] = value[tuple(rows.get(axis, slice(None)) for axis in axes)].clone()
        else:
            cut[name] = value
    kept = _entry_of_one(entry, entry["gate"], num_experts=share, width=entry["expert_size"])
    return cut, kept | {key: entry[key] for key in ("top_k", "combine", "shared_size")}


def _entry_of_one(entry: dict[str, Any], gate: dict[str, Any], *, num_experts: int, width: int) -> dict[str, Any]:
    return {
        "layer": entry["layer"],
        "unit": "ffn",
        "task_groups": [[0]],
        "num_experts": num_experts,
        "pool_sizes": [num_experts],
        "expert_size": width,
        "shared_size": 0,
        "top_k": 1,
        "combine": "straight_through",
        "gate": gate,
    }
