"""From a model to an engine: the only way into DeepSpeed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from torch import nn

from distmoe.checkpoint.global_view import global_views
from distmoe.engine import compatibility, supported
from distmoe.engine.compatibility import routed_marker
from distmoe.engine.config import OptimizerConfig
from distmoe.engine.ds_config import DeepSpeedSettings
from distmoe.engine.engine import Engine
from distmoe.engine.hosted import HostedModel
from distmoe.engine.mpu import ModelParallelUnit
from distmoe.engine.optimizer import build_optimizer
from distmoe.engine.param_groups import build_param_groups, tag_pools
from distmoe.engine.replica_registry import register
from distmoe.engine.self_check import check_ranks
from distmoe.errors import ConfigError
from distmoe.models.parameters import Role, parameter_roles
from distmoe.parallel.placement import Placement
from distmoe.parallel.process_groups import ProcessGroups


def initialize(
    model: nn.Module,
    *,
    settings: DeepSpeedSettings,
    optimizer: OptimizerConfig,
    process_groups: ProcessGroups,
    placement: Placement | None,
    roles: Mapping[str, Role] | None = None,
) -> Engine:
    """Hosts a model in DeepSpeed. Collective: all ranks call it, after ``init_distributed``.

    Args:
        model: From ``build_model``, with this rank's pools and slices; its forward takes one batch.
        settings: From :func:`distmoe.engine.ds_config.resolve`.
        optimizer: Learning rates, weight decay, clipping.
        process_groups: From ``process_groups.create``; its replica classes are registered with DeepSpeed.
        placement: Where the pools live; None for a dense model.
        roles: What each trainable parameter is; default ``parameter_roles(model)``.

    Raises:
        ConfigError: If the combination is refused or DeepSpeed is not the tested version.
        ParallelError: If the ranks disagree about what they are about to train.
    """
    import deepspeed

    # Frozen experts are no less distributed: untagged, DeepSpeed would overwrite them with rank 0's at the start.
    held = dict(parameter_roles(model, frozen=True) if roles is None else roles)
    roles = dict(parameter_roles(model) if roles is None else roles)
    pools = [name for name, role in held.items() if role.kind == "pool"]
    grid = process_groups.grid
    supported.check(
        settings, placement=placement, num_ranks=grid.num_data_ranks, routed=bool(pools), tensor=grid.tensor
    )
    _check_device(settings)
    replica_classes = process_groups.replica_classes if pools else ()
    tag_pools(model, roles=held, replica_classes=replica_classes)
    param_groups = build_param_groups(model, roles=roles, replica_classes=replica_classes, optimizer=optimizer)
    needs_symmetry = settings.stage >= 2 or settings.overlap_comm
    check_ranks(model, param_groups, replica_classes, needs_symmetry=needs_symmetry)
    if pools:
        register(process_groups)
    mpu = None if process_groups.parallel_state is None else ModelParallelUnit(process_groups.parallel_state)
    compatibility.set_mpu(mpu)
    # ZeRO-1/2 insist that a model with experts trains some, and need nothing for frozen ones but their tags. ZeRO-3
    # cuts frozen ones as well, and without the marker it would do so over ranks that hold other experts.
    marked = pools if settings.stage == 3 else [name for name in pools if name in roles]
    hosted = HostedModel(model, marker=_marker(model, marked, placement))
    if settings.stage == 3:
        _prepare_stage3(model)
    views = global_views(model, grid=grid)  # before ZeRO-3 empties the parameters

    # DeepSpeed prints tables of memory on its way; its warnings go through its logger and stay.
    with contextlib.redirect_stdout(io.StringIO()):
        ds_engine, *_ = deepspeed.initialize(
            model=hosted,
            optimizer=build_optimizer(param_groups, config=optimizer),
            config=_values(settings, routed=bool(pools)),
            mpu=mpu,
            dist_init_required=False,
        )
    compatibility.check_engine(ds_engine, stage=settings.stage)
    _check_precision(ds_engine, settings)
    topology = {
        "num_ranks": grid.num_ranks,
        "tensor": grid.tensor,
        "ep_size": placement.ep_size if placement is not None else 1,
        "placement": placement.mode if placement is not None else "colocated",
        "zero_stage": settings.stage,
        "precision": settings.precision,
    }
    return Engine(ds_engine, model, settings=settings, optimizer=optimizer, views=views, topology=topology)


def _check_device(settings: DeepSpeedSettings) -> None:
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    able = {"fp16": accelerator.is_fp16_supported, "bf16": accelerator.is_bf16_supported, "fp32": lambda: True}
    if not able[settings.precision]():
        raise ConfigError(
            f"{settings.source}: this device cannot train in {settings.precision}",
            got=accelerator.device_name(),
            expected=f"a device with {settings.precision}",
            remedy="use zero1_fp32 or zero1_bf16 (parallel.deepspeed or --deepspeed_config)",
        )


def _check_precision(ds_engine: Any, settings: DeepSpeedSettings) -> None:
    """Batches, exchange buffers and checkpoints follow ``settings``: DeepSpeed must have read the file alike."""
    found = "fp16" if ds_engine.fp16_enabled() else "bf16" if ds_engine.bfloat16_enabled() else "fp32"
    if found != settings.precision:
        raise ConfigError(
            f"{settings.source}: DeepSpeed trains in another precision than distmoe has read",
            got=found,
            expected=settings.precision,
            remedy='enable a precision with "bf16": {"enabled": true} or "fp16": {"enabled": true} alone',
        )


def _values(settings: DeepSpeedSettings, *, routed: bool) -> dict[str, Any]:
    if settings.stage != 3 or not routed:
        return settings.values
    # A prefetch gathers replicated parameters and experts in one call, in an order that differs between ranks (see
    # _prepare_stage3): harmless on gloo, a possible deadlock on NCCL.
    zero = settings.values["zero_optimization"] | {"stage3_prefetch_bucket_size": 0}
    return settings.values | {"zero_optimization": zero}


def _marker(model: nn.Module, pools: list[str], placement: Placement | None) -> nn.Module | None:
    if not pools:
        return None
    parameters = dict(model.named_parameters())
    ep_size = placement.ep_size if placement is not None else 1
    # A layer of a task group's own is not stacked.
    num_local = 1 if ".variants." in pools[0] else parameters[pools[0]].shape[0]
    return routed_marker(num_local, ep_size)


def _prepare_stage3(model: nn.Module) -> None:
    """Makes ZeRO-3 gather a gate's parameters together with its routed layer.

    DeepSpeed finds the tensors of a module's output in tuples and dictionaries only. A gate returns a frozen
    ``Routing``, so nothing would gather the gate's parameters again for its backward pass; the layer around it returns
    a tensor beside the routing, and the gate's backward pass lies inside the layer's.

    NOTE: Declaring the whole layer a "leaf" would do the same, but would gather replicated parameters and experts in
    one call, and DeepSpeed then orders the two process groups by ``id()``: differently on each rank.
    """
    from deepspeed import zero

    from distmoe.moe.layer import RoutedFeedForward

    for module in model.modules():
        if isinstance(module, RoutedFeedForward):
            for parameter in module.gate.parameters():
                zero.register_external_parameter(module, parameter)
