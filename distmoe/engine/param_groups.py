"""The optimizer's param groups: explicit, ordered, the same list on every rank.

DeepSpeed can split parameters by itself, but it iterates over a set of strings while doing so: the order then differs
between processes, ranks reduce different things together, and the job hangs or, after a resume, overwrites weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from distmoe.engine.config import OptimizerConfig
from distmoe.models.parameters import Role
from distmoe.parallel.process_groups import ReplicaClass

_DENSE_KINDS = ("dense", "gate", "head")


def build_param_groups(
    model: nn.Module,
    *,
    roles: Mapping[str, Role],
    replica_classes: tuple[ReplicaClass, ...],
    optimizer: OptimizerConfig,
) -> list[dict[str, Any]]:
    """Returns dense param groups first, then per replica class the pools, each split by weight decay.

    Every dictionary has ``params``, ``name``, ``moe``, ``lr``, ``lr_scale``, ``weight_decay`` and, for messages and
    checks, ``parameter_names``. A pool's param group is named after its replica class: DeepSpeed looks the process
    group of its reduction up under that name, and several param groups may share it.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(parameters) == set(roles), f"roles and trainable parameters differ: {set(parameters) ^ set(roles)}"
    class_of = {layer: replica_class.name for replica_class in replica_classes for layer in replica_class.layers}
    scales = {"gate": optimizer.gate_lr_scale, "head": optimizer.head_lr_scale}
    buckets: dict[tuple[str, bool], list[str]] = {}
    order = [(kind, decay) for kind in _DENSE_KINDS for decay in (True, False)]
    order += [(name, decay) for name in sorted(set(class_of.values())) for decay in (True, False)]
    for name, role in roles.items():
        key = class_of[_index(role)] if role.kind == "pool" else role.kind
        buckets.setdefault((key, role.decay), []).append(name)
    param_groups: list[dict[str, Any]] = []
    for key, decay in order:
        names = buckets.pop((key, decay), [])
        if not names:
            continue
        scale = scales.get(key, 1.0)
        is_pool = key not in _DENSE_KINDS
        param_groups.append(
            {
                "params": [parameters[name] for name in names],
                "parameter_names": tuple(names),
                "name": key if is_pool else f"{key}-{'decay' if decay else 'no-decay'}",
                "moe": is_pool,
                "lr": optimizer.lr * scale,
                "lr_scale": scale,
                "weight_decay": optimizer.weight_decay if decay else 0.0,
            }
        )
    placed = [name for param_group in param_groups for name in param_group["parameter_names"]]
    assert not buckets, f"roles without a param group: {list(buckets)}"
    assert sorted(placed) == sorted(parameters), "every trainable parameter belongs to exactly one param group"
    return param_groups


def tag_pools(model: nn.Module, *, roles: Mapping[str, Role], replica_classes: tuple[ReplicaClass, ...]) -> None:
    """Marks expert parameters, so that DeepSpeed averages each over its copies only."""
    class_of = {layer: replica_class.name for replica_class in replica_classes for layer in replica_class.layers}
    for name, parameter in model.named_parameters():
        role = roles.get(name)
        if role is None or role.kind != "pool":
            continue
        tags = {
            "allreduce": False,
            "group_name": class_of[_index(role)],
            "ds_zero_placement_family": "autoep_expert",
            "ds_zero_partition_group_name": class_of[_index(role)],
        }
        for tag, value in tags.items():
            setattr(parameter, tag, value)


def _index(role: Role) -> int:
    assert role.routed_index is not None, "a pool belongs to a routed layer"
    return role.routed_index
