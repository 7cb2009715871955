"""Which axes of a model's tensors count tasks and experts, as data.

Heads, gates and the tables of conditional modules have a row per task. They name their axes by the letters at the end
of their names: M tasks, E experts, C outputs, V vocabulary. A few names need a word more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from distmoe.moe.config import GateConfig

_GATE = re.compile(r"(?:encoder|decoder)\.layers\.(\d+)\.feed_forward\.gate\.(.+)")
_POOL = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.feed_forward\.pools\.g(\d+)\.(.+)")
_HEADS = {"heads.weight": "MCD", "heads.bias": "MC", "heads.weight_MVD": "MVD", "heads.weight_VD": ""}
_CONDITIONAL = {"z_Tk": "Mk", "table_Tm": "Mm"}


@dataclass(frozen=True)
class PoolTensor:
    """A tensor of the experts of a task group.

    Attributes:
        trunk: ``encoder`` or ``decoder``.
        layer: Model layer.
        task_group: Number of the task group.
        rest: Rest of the name.
    """

    trunk: str
    layer: int
    task_group: int
    rest: str

    @property
    def name(self) -> str:
        return f"{self.trunk}.layers.{self.layer}.feed_forward.pools.g{self.task_group}.{self.rest}"


def gate_layer(name: str) -> int | None:
    """The model layer whose gate a tensor belongs to, or None."""
    match = _GATE.fullmatch(name)
    return None if match is None else int(match[1])


def pool_of(name: str) -> PoolTensor | None:
    """What a tensor of experts is called after, or None for another tensor."""
    match = _POOL.fullmatch(name)
    return None if match is None else PoolTensor(match[1], int(match[2]), int(match[3]), match[4])


def axes_of(name: str, gate: GateConfig | None) -> str:
    """One letter per axis of a tensor with a row per task or expert; empty for all others.

    Args:
        name: Global name of a parameter or buffer.
        gate: Kind of gate of the model; None for a dense one.
    """
    if name in _HEADS:
        return _HEADS[name]
    match = _GATE.fullmatch(name)
    if match is None or gate is None:
        return _CONDITIONAL.get(name.rpartition(".")[2], "")
    inner = match[2]
    if inner == "router.weight":  # a linear router gives logits, an MLP router hidden units
        return "EJ" if gate.router == "linear" else "HJ"
    if inner == "task_vectors.w_in_HV":  # V counts tasks where they are one-hot, else features of a description
        return "HV" if gate.kind == "task_description" else "HM"
    return inner.rpartition("_")[2]
