"""The one place that lists DeepSpeed's private names, and, with :mod:`distmoe.engine.fragments`, uses them.

DeepSpeed offers no public way to host several expert-parallel layouts in one engine or to reach the fp32 fragments
behind a parameter, so distmoe uses names that may change with any minor version, which ``pyproject.toml`` pins. Those
of modules and classes (:data:`PRIVATE_NAMES`) are checked at start-up; those that objects are given when they are made
(:data:`OPTIMIZER_NAMES` and the two after it) when DeepSpeed has made them, before the first step.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from distmoe.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

PIN = "deepspeed>=0.19.8,<0.20"

# module -> attributes; a dot descends into a class. What each serves: docs/deepspeed.md.
PRIVATE_NAMES: dict[str, tuple[str, ...]] = {
    "deepspeed.module_inject.auto_ep_layer": ("AutoEPMoELayer",),
    "deepspeed.utils.groups": (
        "_EXPERT_PARALLEL_GROUP",
        "_EXPERT_PARALLEL_GROUP_RANKS",
        "_EXPERT_DATA_PARALLEL_GROUP",
        "_EXPERT_DATA_PARALLEL_GROUP_RANKS",
        "_get_max_expert_size_name",
        "mpu",
    ),
    "deepspeed.runtime.zero.stage_1_and_2": (
        "DeepSpeedZeroOptimizer.update_lp_params",
        "DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state",
        "DeepSpeedZeroOptimizer._release_preflattened_grad_buffers",
        "DeepSpeedZeroOptimizer.reset_cpu_buffers",
        "INITIAL_MICRO_STEP_ID",
    ),
    "deepspeed.runtime.bf16_optimizer": (
        "BF16_Optimizer.update_lp_params",
        "BF16_Optimizer._lazy_init_hp_params_optimizer_state",
        "BF16_Optimizer.clear_hp_grads",
    ),
    "deepspeed.runtime.zero.stage3": (
        "DeepSpeedZeroOptimizer_Stage3._reassign_or_swap_out_partitioned_parameters",
        "DeepSpeedZeroOptimizer_Stage3._get_fp32_opt_state_partition",
        "DeepSpeedZeroOptimizer_Stage3._overflow_clean_up",
        "DeepSpeedZeroOptimizer_Stage3._partition_all_parameters",
    ),
    "deepspeed": ("zero.register_external_parameter",),
}

# By the kind of wrapper that DeepSpeed makes: what distmoe reads or writes of it, and of each trainable parameter.
OPTIMIZER_NAMES: dict[str, tuple[str, ...]] = {
    "none": (),
    "bf16": ("_hp_optimizer_states_linked", "clear_lp_grads"),
    "zero": ("_hp_optimizer_states_linked", "micro_step_id", "averaged_gradients", "all_grad_tensors", "cpu_offload"),
    "offload": ("_offload_accumulated_param_ids",),  # in addition
    "stage3": ("fp32_partitioned_groups_flat", "micro_step_id"),
}
PARAMETER_NAMES: dict[str, tuple[str, ...]] = {
    "none": (),
    "bf16": ("_hp_mapping",),
    "zero": ("_hp_mapping",),
    "stage3": ("ds_tensor", "ds_numel", "ds_process_group"),
}
ENGINE_NAMES = ("_step_applied", "micro_steps", "global_steps", "skipped_steps", "has_moe_layers")


def check_version() -> None:
    """Refuses any DeepSpeed other than the pinned minor version.

    Raises:
        ConfigError: If DeepSpeed is missing, of another version, or lacks a name of :data:`PRIVATE_NAMES`.
    """
    remedy = f"pip install '{PIN}'"
    try:
        found = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("DeepSpeed is not installed", got="no package", expected=PIN, remedy=remedy) from None
    if Version(found) not in SpecifierSet(PIN.removeprefix("deepspeed")):
        raise ConfigError(
            "this version of DeepSpeed was not tested with distmoe", got=found, expected=PIN, remedy=remedy
        )
    _refuse_missing(missing_names(), found)


def check_engine(engine: Any, *, stage: int) -> None:
    """Refuses an engine that lacks what distmoe uses of it, of its optimizer and of its parameters.

    Args:
        engine: DeepSpeed's, as it was just made.
        stage: ZeRO stage that was asked for: without its names, an optimizer does not show which one it is.

    Raises:
        ConfigError: If a name is missing.
    """
    optimizer = engine.optimizer
    kind = "none" if stage == 0 else "stage3" if stage == 3 else "bf16" if is_bf16_optimizer(optimizer) else "zero"
    names = OPTIMIZER_NAMES[kind]
    if kind == "zero" and getattr(optimizer, "cpu_offload", False):
        names += OPTIMIZER_NAMES["offload"]
    missing = _lacking(engine, ENGINE_NAMES) + _lacking(optimizer, names)
    for parameter in engine.module.parameters():
        if parameter.requires_grad:
            missing += _lacking(parameter, PARAMETER_NAMES[kind])
    _refuse_missing(list(dict.fromkeys(missing)), importlib.metadata.version("deepspeed"))


def _lacking(thing: object, names: Iterable[str]) -> list[str]:
    return [f"{type(thing).__name__}.{name}" for name in names if not hasattr(thing, name)]


def _refuse_missing(missing: list[str], version: str) -> None:
    if missing:
        raise ConfigError(
            "DeepSpeed lacks private names that distmoe uses",
            got=f"{version} without {missing}",
            expected=PIN,
            remedy=f"pip install '{PIN}'",
        )


def missing_names() -> list[str]:
    """Entries of :data:`PRIVATE_NAMES` that the installed DeepSpeed does not have."""
    missing = []
    for module_name, attributes in PRIVATE_NAMES.items():
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            missing.append(module_name)
            continue
        for attribute in attributes:
            node: Any = module
            for part in attribute.split("."):
                node = getattr(node, part, _ABSENT)
                if node is _ABSENT:
                    missing.append(f"{module_name}.{attribute}")
                    break
    return missing


_ABSENT = object()


def routed_marker(num_experts: int, ep_size: int) -> nn.Module:
    """A module without parameters that makes DeepSpeed see a mixture-of-experts model.

    DeepSpeed decides with ``isinstance`` alone whether a model has routed layers. The marker passes that check, so the
    real layers keep their own classes and parameter names; tags on the parameters do the rest.
    """
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
    from torch import nn as torch_nn

    class RoutedMarker(AutoEPMoELayer):
        def __init__(self) -> None:
            torch_nn.Module.__init__(self)  # the parent's constructor wants a Hugging Face layer to replace
            self.num_experts, self.ep_size = num_experts, ep_size
            self.ep_group = None

        def set_deepspeed_parallelism(self, *_: Any, **__: Any) -> None:
            """Process groups are registered before the engine exists; nothing is left to do."""

    return RoutedMarker()


def set_mpu(mpu: Any) -> None:
    """Hands DeepSpeed the run's ``mpu``; None: there is none, not that of an earlier engine in this process."""
    from deepspeed.utils import groups

    groups.mpu = mpu


def is_bf16_optimizer(optimizer: Any) -> bool:
    """Whether DeepSpeed chose ``BF16_Optimizer`` (ZeRO-1, bf16 weights, fp32 accumulation)."""
    return type(optimizer).__name__ == "BF16_Optimizer"


def is_stage3(optimizer: Any) -> bool:
    return hasattr(optimizer, "fp32_partitioned_groups_flat")


def is_zero(optimizer: Any) -> bool:
    """Whether the optimizer is one of DeepSpeed's sharding wrappers (ZeRO-1, 2, 3 or ``BF16_Optimizer``)."""
    return is_stage3(optimizer) or hasattr(optimizer, "_hp_optimizer_states_linked")


def base_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside DeepSpeed's wrapper (ZeRO-0 has no wrapper)."""
    return optimizer.optimizer if is_zero(optimizer) else optimizer


def fp32_partitions(optimizer: Any) -> list[Any]:
    """The flat fp32 tensors that the torch optimizer updates on this rank; its state is keyed by them."""
    if is_stage3(optimizer):
        return list(optimizer.fp32_partitioned_groups_flat)
    return [parameter for param_group in optimizer.param_groups for parameter in param_group["params"]]


def relink_states(optimizer: Any) -> None:
    """Links the optimizer state of every parameter.

    DeepSpeed links once, after the *first* param group's step, when later param groups have no state yet; reading
    their moments then fails with "exp_avg not found in optimizer state fragment".
    """
    if is_zero(optimizer) and not is_stage3(optimizer):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def refresh_weights(optimizer: Any) -> None:
    """Copies the fp32 master weights of every rank into the weights that the model computes with."""
    if is_stage3(optimizer):
        optimizer._partition_all_parameters()
        for index in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if getattr(optimizer, "persistent_parameters", None):
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif is_zero(optimizer):
        optimizer.update_lp_params()


_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@contextmanager
def as_data_parallel(engine: Any) -> Iterator[None]:
    """Lets DeepSpeed save or load a model with routed layers as one without, inside the body.

    Exact where every rank holds every expert. DeepSpeed would otherwise look for experts in modules of its own
    classes, and find the marker of :func:`routed_marker`, which has none.
    """
    before = engine.has_moe_layers
    engine.has_moe_layers = False
    try:
        yield
    finally:
        engine.has_moe_layers = before


def loss_scaler_state(optimizer: Any) -> dict[str, float]:
    """The dynamic loss scaler's numbers; empty where the scale is constant, as in fp32 and bf16."""
    if not getattr(optimizer, "dynamic_loss_scale", False):
        return {}
    return {key: getattr(optimizer.loss_scaler, key) for key in _SCALER_FIELDS if hasattr(optimizer.loss_scaler, key)}


def set_loss_scaler_state(optimizer: Any, state: Mapping[str, float]) -> None:
    """Restores what :func:`loss_scaler_state` gave; does nothing between a dynamic and a constant scale.

    Older checkpoints hold the number of a constant scale, 1 in fp32 and bf16: a dynamic one has ``cur_iter``, too.
    """
    if getattr(optimizer, "dynamic_loss_scale", False) and "cur_iter" in state:
        for key in _SCALER_FIELDS:
            if key in state:
                setattr(optimizer.loss_scaler, key, state[key])


def drop_gradients(engine: Any) -> None:
    """Forgets every gradient accumulated since the last step, reduced or not, and rewinds to a step's beginning."""
    optimizer = engine.optimizer
    if is_stage3(optimizer):
        optimizer.micro_step_id = 0
        optimizer._overflow_clean_up(None)
    elif is_bf16_optimizer(optimizer):
        optimizer.clear_hp_grads()
        optimizer.clear_lp_grads()
    elif is_zero(optimizer):
        from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID

        optimizer.micro_step_id = INITIAL_MICRO_STEP_ID
        optimizer.zero_grad(set_to_none=True)
        optimizer._release_preflattened_grad_buffers()
        if optimizer.cpu_offload:
            optimizer.reset_cpu_buffers()
            optimizer._offload_accumulated_param_ids = set()
        for index in optimizer.averaged_gradients:
            optimizer.averaged_gradients[index] = None
            optimizer.all_grad_tensors[index] = None
    else:
        engine.zero_grad()
    accumulation = engine.gradient_accumulation_steps()
    engine.micro_steps = -(-engine.micro_steps // accumulation) * accumulation
