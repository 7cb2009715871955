"""Compares what the ranks are about to train, before the first step.

Ranks that disagree do not fail where they disagree: they hang in a later collective, or reduce the wrong tensors
together without a word. So each rank describes its param groups and dense parameters, and all descriptions are
compared with rank 0's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from distmoe.engine.compatibility import check_version
from distmoe.errors import ParallelError
from distmoe.parallel.process_groups import ReplicaClass


def describe(
    model: nn.Module, param_groups: Sequence[Mapping[str, Any]], replica_classes: Sequence[ReplicaClass]
) -> dict[str, list[Any]]:
    """What must be equal on all ranks, as plain values; keys name the aspect in error messages."""
    dense = [
        (name, _whole_shape(parameter), str(parameter.dtype), parameter.requires_grad)
        for name, parameter in model.named_parameters()
        if getattr(parameter, "allreduce", True)
    ]
    return {
        "dense parameters": dense,
        "names of param groups": [(p["name"], p["moe"], p["weight_decay"], p["lr"]) for p in param_groups],
        "parameters of dense param groups": [p["parameter_names"] for p in param_groups if not p["moe"]],
        "buffers": [(name, tuple(buffer.shape)) for name, buffer in model.named_buffers()],
        "replica classes": [(c.name, c.layers, c.uniform) for c in replica_classes],
    }


def _whole_shape(parameter: Any) -> tuple[int, ...]:
    """Over tensor ranks, whose slices of a vocabulary may differ by rows."""
    shape = list(parameter.shape)
    if getattr(parameter, "tensor_model_parallel", False):
        shape[parameter.partition_dim] = parameter.partition_whole
    return tuple(shape)


def expert_numels(param_groups: Sequence[Mapping[str, Any]]) -> list[tuple[int, ...]]:
    """Elements of every expert parameter, per param group: equal on all ranks in a symmetric layout."""
    return [tuple(parameter.numel() for parameter in p["params"]) for p in param_groups if p["moe"]]


_REMEDIES = {"expert sizes": "give all ranks equally many experts, or use ZeRO-1 with overlap_comm false"}


def check_ranks(
    model: nn.Module,
    param_groups: Sequence[Mapping[str, Any]],
    replica_classes: Sequence[ReplicaClass],
    *,
    needs_symmetry: bool,
) -> None:
    """Runs every check; all ranks call it.

    Args:
        model: The model of this rank, tagged.
        param_groups: Its optimizer's param groups.
        replica_classes: Its replica classes.
        needs_symmetry: Whether expert sizes must be equal on all ranks (ZeRO-2 and overlapped reduction).

    Raises:
        ConfigError: If DeepSpeed is not the tested one.
        ParallelError: Naming the two ranks that differ and the difference.
    """
    check_version()
    _check_tags(param_groups, replica_classes)
    mine: dict[str, Any] = describe(model, param_groups, replica_classes)
    if needs_symmetry:
        mine["expert sizes"] = expert_numels(param_groups)
    world = dist.get_world_size()
    gathered: list[Any] = [None] * world
    layout = [(c.name, tuple(c.ep_ranks), tuple(c.edp_ranks)) for c in replica_classes]
    dist.all_gather_object(gathered, (mine, layout, [p["name"] for p in param_groups if not p["params"]]))
    for rank in range(1, world):
        compare(gathered[0][0], gathered[rank][0], rank)
    check_cover([layout for _, layout, _ in gathered])
    empty = {rank: names for rank, (_, _, names) in enumerate(gathered) if names}
    if empty:
        raise ParallelError(
            "a param group is empty on some ranks, which would leave the others waiting",
            got=empty,
            expected="no empty param group",
            remedy="give every rank experts of every routed layer",
        )


def compare(first: Mapping[str, list[Any]], other: Mapping[str, list[Any]], rank: int) -> None:
    """Raises ParallelError at the first entry in which rank ``rank`` differs from rank 0."""
    for aspect, values in first.items():
        theirs = other[aspect]
        if values == theirs:
            continue
        place = next(
            (i for i, (a, b) in enumerate(zip(values, theirs, strict=False)) if a != b), min(len(values), len(theirs))
        )
        ours = values[place] if place < len(values) else "nothing"
        got = theirs[place] if place < len(theirs) else "nothing"
        raise ParallelError(
            f"ranks 0 and {rank} differ in their {aspect} (entry {place})",
            got=f"rank {rank}: {got}",
            expected=f"rank 0: {ours}",
            remedy=_REMEDIES.get(aspect, "build the same modules, in the same order, on every rank"),
        )


def check_cover(layouts: Sequence[Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]]) -> None:
    """Every rank's copies must agree with the view of the ranks it names.

    Raises:
        ParallelError: If rank a counts rank b among the copies of its experts, but not the other way round.
    """
    for rank, layout in enumerate(layouts):
        for index, (name, _, edp_ranks) in enumerate(layout):
            if rank not in edp_ranks:
                raise ParallelError(
                    f"replica class {name!r}: rank {rank} is not among its own copies",
                    got=list(edp_ranks),
                    expected=f"a list with {rank}",
                    remedy="report this as a bug of distmoe",
                )
            for peer in edp_ranks:
                if layouts[peer][index][2] != edp_ranks:
                    raise ParallelError(
                        f"replica class {name!r}: ranks {rank} and {peer} disagree about their copies",
                        got=f"rank {peer}: {list(layouts[peer][index][2])}",
                        expected=f"rank {rank}: {list(edp_ranks)}",
                        remedy="report this as a bug of distmoe",
                    )


def _check_tags(param_groups: Sequence[Mapping[str, Any]], replica_classes: Sequence[ReplicaClass]) -> None:
    names = {replica_class.name for replica_class in replica_classes}
    for param_group in param_groups:
        for parameter in param_group["params"]:
            is_pool = not getattr(parameter, "allreduce", True)
            assert is_pool == param_group["moe"], "a param group mixes experts and replicated parameters"
            assert not is_pool or parameter.group_name == param_group["name"] in names, "an expert of no replica class"
            assert isinstance(parameter, torch.Tensor)
