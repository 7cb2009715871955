"""Tells DeepSpeed over which ranks the gradients of each replica class are summed.

DeepSpeed keeps process groups of experts in module-level dictionaries keyed by name and reads the number at the third
place of ``ep_size_<n>_<tag>``; it also expects the plain name ``ep_size_<largest n>`` to exist.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from distmoe.parallel.process_groups import ProcessGroups, ReplicaClass


def register(process_groups: ProcessGroups) -> None:
    """Replaces DeepSpeed's entries by the given replica classes; call on every rank before ``initialize``.

    An engine of an earlier phase in the same process must be destroyed first.
    """
    from deepspeed.utils import groups

    tables = (
        groups._EXPERT_PARALLEL_GROUP,
        groups._EXPERT_PARALLEL_GROUP_RANKS,
        groups._EXPERT_DATA_PARALLEL_GROUP,
        groups._EXPERT_DATA_PARALLEL_GROUP_RANKS,
    )
    for table in tables:
        table.clear()
    for replica_class in process_groups.replica_classes:
        _enter(tables, replica_class)
    if process_groups.alias is not None:
        _enter(tables, process_groups.alias)
        assert groups._get_max_expert_size_name() == process_groups.alias.name


def _enter(tables: tuple[dict[str, Any], ...], replica_class: ReplicaClass) -> None:
    # None stands for "no torch.distributed"; for DeepSpeed it would be the world, which a world of one indeed is.
    world, name = dist.group.WORLD, replica_class.name
    ep, ep_ranks, edp, edp_ranks = tables
    ep[name] = world if replica_class.ep_group is None else replica_class.ep_group
    edp[name] = world if replica_class.edp_group is None else replica_class.edp_group
    ep_ranks[name] = list(replica_class.ep_ranks)
    edp_ranks[name] = list(replica_class.edp_ranks)
