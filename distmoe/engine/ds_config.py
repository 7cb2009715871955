"""The user's DeepSpeed JSON, completed and checked against the recipe.

The file stays DeepSpeed's: distmoe fills its ``"auto"`` fields, adds the keys whose silent defaults are traps, and
refuses what contradicts the recipe or was never tested with task-routed models.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distmoe.engine.config import OptimizerConfig
from distmoe.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]

# Shipped files; users pass one by name or a file of their own by path.
CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "ds_configs"

REDUCE_BUCKET = 500_000_000  # DeepSpeed's default of zero_optimization.reduce_bucket_size, in elements

# (dotted key, values that are fine, why others are refused, remedy)
_REFUSED: tuple[tuple[str, tuple[Any, ...], str, str], ...] = (
    (
        "optimizer",
        (None, "auto"),
        "the recipe owns the optimizer",
        "set optimizer.* in the recipe and remove the section",
    ),
    (
        "scheduler",
        (None, "auto"),
        "the recipe owns the schedule",
        "set schedule.* in the recipe and remove the section",
    ),
    (
        "zero_optimization.round_robin_gradients",
        (None, False),
        "it mixes up which fragment belongs to which parameter",
        "remove the key",
    ),
    ("zero_optimization.mics_shard_size", (None, -1, 0), "DeepSpeed 0.19 removed MiCS", "remove the key"),
    ("zero_optimization.zero_hpz_partition_size", (None, 1), "not tested with routed layers", "remove the key"),
    ("zero_optimization.zero_quantized_weights", (None, False), "changes the numbers of every step", "remove the key"),
    (
        "zero_optimization.zero_quantized_gradients",
        (None, False),
        "changes the numbers of every step",
        "remove the key",
    ),
    ("zero_optimization.offload_param", (None,), "not tested with routed layers", "use offload_optimizer"),
    ("zero_optimization.cpu_offload", (None, False), "an older name of offload_optimizer", "use offload_optimizer"),
    ("zero_optimization.cpu_offload_param", (None, False), "not tested with routed layers", "use offload_optimizer"),
    ("zero_optimization.zenflow", (None,), "not tested with routed layers", "remove the section"),
    ("zero_optimization.reduce_scatter", (None, True), "DeepSpeed needs it for routed layers", "remove the key"),
    ("zero_optimization.contiguous_gradients", (None, True), "DeepSpeed needs it for routed layers", "remove the key"),
    (
        "zero_optimization.compute_grad_norm",
        (None, True),
        "the gradient norm is reported and clipped by",
        "remove the key",
    ),
    ("bfloat16", (None,), "an older name of bf16", "rename the section to bf16"),
    ("bf16.immediate_grad_update", (None, False), "not tested with routed layers", "remove the key"),
    (
        "bf16.check_grad_overflow",
        (None, True),
        "a gradient that is not finite would reach the weights",
        "remove the key",
    ),
    ("bf16.bf16_master_weights_and_grads", (None, False), "checkpoints hold fp32 master weights", "remove the key"),
    ("bf16.bf16_optimizer_states", (None, False), "checkpoints hold fp32 moments", "remove the key"),
    ("fp16.fp16_master_weights_and_grads", (None, False), "checkpoints hold fp32 master weights", "remove the key"),
    ("torch_autocast.enabled", (None, False), "precision is set by bf16 or fp16", "remove the section"),
    (
        "prescale_gradients",
        (None, False),
        "expert gradients are divided by the world size afterwards",
        "remove the key",
    ),
    (
        "gradient_predivide_factor",
        (None, 1, 1.0),
        "expert gradients are divided by the world size afterwards",
        "remove it",
    ),
    ("gradient_allreduce_op", (None, "mean"), "loss weights are made for the mean over ranks", "remove the key"),
    ("managed_gradient_accumulation", (None, True), "distmoe counts micro-batches with DeepSpeed", "remove the key"),
    (
        "expert_parallel",
        (None,),
        "it would replace distmoe's layers by DeepSpeed's",
        "set parallel.ep_size in the recipe",
    ),
    ("tensor_parallel", (None,), "distmoe does not use DeepSpeed's tensor parallelism", "remove the section"),
    ("sequence_parallel_size", (None, 1), "not supported", "remove the key"),
    ("data_efficiency", (None,), "it needs DeepSpeed's own data loader", "use data.sampling in the recipe"),
    ("elasticity", (None,), "DeepSpeed 0.19 removed it", "remove the section; checkpoints fit any number of ranks"),
    ("curriculum_learning", (None,), "DeepSpeed 0.19 removed it", "remove the section"),
    ("compression_training", (None,), "DeepSpeed 0.19 removed it", "remove the section"),
    ("nebula", (None,), "DeepSpeed 0.19 removed it", "remove the section"),
    ("amp", (None,), "DeepSpeed 0.19 removed it", "use bf16 or fp16"),
    ("sparse_gradients", (None, False), "DeepSpeed 0.19 removed it", "remove the key"),
    ("progressive_layer_drop", (None,), "DeepSpeed 0.19 removed it", "remove the section"),
)

# What is read below; DeepSpeed itself fails on other values without saying where.
_SECTIONS = ("zero_optimization", "zero_optimization.offload_optimizer", "bf16", "fp16", "data_types")


@dataclass(frozen=True)
class DeepSpeedSettings:
    """A completed configuration and what distmoe reads from it.

    Attributes:
        values: The dictionary for ``deepspeed.initialize``.
        source: Where it came from, for messages.
        stage: ZeRO stage, 0 to 3.
        precision: Type of the weights that the model computes with.
        accumulation_dtype: Type in which gradients of micro-batches are added up.
        offload: Whether the optimizer lives in host memory.
        overlap_comm: Whether reductions run beside the backward pass.
        accumulation_steps: Micro-batches per optimizer step.
    """

    values: dict[str, Any]
    source: str
    stage: int
    precision: Precision
    accumulation_dtype: Precision
    offload: bool
    overlap_comm: bool
    accumulation_steps: int

    @property
    def rounds_sums(self) -> bool:
        """Whether several micro-batches are added up in bf16: what is below 1/256 of a sum is lost."""
        return self.accumulation_dtype == "bf16" and self.accumulation_steps > 1

    @property
    def reduce_bucket_size(self) -> int:
        """Elements of a reduction bucket; DeepSpeed's own default where the file says nothing."""
        return int(self.values["zero_optimization"].get("reduce_bucket_size", REDUCE_BUCKET))


def resolve(
    source: str | Path | Mapping[str, Any],
    *,
    optimizer: OptimizerConfig,
    micro_batch_size: int,
    accumulation_steps: int,
    num_ranks: int,
    device_type: str,
) -> DeepSpeedSettings:
    """Returns the completed configuration.

    Args:
        source: ``auto`` (ZeRO-1; bf16 on a GPU, fp32 on a CPU), a name in ``ds_configs/``, a path, or the values.
        optimizer: Its ``gradient_clipping`` fills the key of that name.
        micro_batch_size: Examples per rank and forward pass (the largest, where ranks differ).
        accumulation_steps: Micro-batches per optimizer step.
        num_ranks: World size.
        device_type: ``cpu`` or ``cuda``.

    Raises:
        ConfigError: If the file is missing or not a JSON object, a key contradicts the recipe, or a feature is
            refused; the message names both sides.
    """
    values, label = _read(source, device_type)
    _refuse_malformed(values, label)
    for key, accepted, why, remedy in _REFUSED:
        found = _get(values, key)
        if found not in accepted:
            expected = "no such key" if accepted == (None,) else " | ".join(str(a) for a in accepted if a is not None)
            raise ConfigError(f"{label}: {key!r} cannot be used: {why}", got=found, expected=expected, remedy=remedy)
    for section in ("optimizer", "scheduler"):
        values.pop(section, None)
    zero = values.setdefault("zero_optimization", {})
    stage = _stage(zero, label)
    precision = _precision(values, label)
    _fill(values, "train_micro_batch_size_per_gpu", micro_batch_size, label, "data.micro_batch_size")
    _fill(values, "gradient_accumulation_steps", accumulation_steps, label, "data.batch_size and data.micro_batch_size")
    _fill(values, "train_batch_size", micro_batch_size * accumulation_steps * num_ranks, label, "data.batch_size")
    # DeepSpeed's own default is 1.0, silently.
    _fill(values, "gradient_clipping", optimizer.gradient_clipping, label, "optimizer.gradient_clipping")
    _fill(values, "zero_allow_untested_optimizer", True, label, "distmoe's own AdamW")
    accumulation = _accumulation_dtype(values, precision, stage, label)
    offload = (zero.get("offload_optimizer") or {}).get("device", "none")
    if offload not in ("none", "cpu"):
        raise ConfigError(
            f"{label}: the optimizer can be offloaded to the CPU only",
            got=offload,
            expected="none | cpu",
            remedy="set zero_optimization.offload_optimizer.device to cpu",
        )
    if offload == "cpu":
        # torch's AdamW runs on host tensors without a compiled extension.
        _fill(values, "zero_force_ds_cpu_optimizer", False, label, "distmoe's own AdamW")
        if device_type == "cpu":
            zero["offload_optimizer"] = zero["offload_optimizer"] | {"pin_memory": False}
    for key in [key for key, value in zero.items() if value == "auto"]:
        del zero[key]
    zero.setdefault("overlap_comm", False)
    values.setdefault("steps_per_print", 10**9)
    if left := sorted(_autos(values)):
        raise ConfigError(
            f'{label}: distmoe cannot fill these "auto" fields',
            got=left,
            expected="a value, or no key",
            remedy="write a value",
        )
    return DeepSpeedSettings(
        values, label, stage, precision, accumulation, offload == "cpu", bool(zero["overlap_comm"]), accumulation_steps
    )


def _read(source: str | Path | Mapping[str, Any], device_type: str) -> tuple[dict[str, Any], str]:
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source)), "DeepSpeed configuration"
    if str(source) == "auto":
        zero1: dict[str, Any] = {"zero_optimization": {"stage": 1}}
        return (zero1 | {"bf16": {"enabled": True}} if device_type == "cuda" else zero1), "parallel.deepspeed=auto"
    path = Path(source)
    if not path.is_file():
        path = CONFIG_FOLDER / f"{path.name.removesuffix('.json')}.json"
    if not path.is_file():
        shipped = sorted(file.stem for file in CONFIG_FOLDER.glob("*.json"))
        raise ConfigError(
            "there is no such DeepSpeed configuration",
            got=str(source),
            expected=f"a path, auto, or one of {' | '.join(shipped)}",
            remedy="correct --deepspeed_config or parallel.deepspeed",
        )
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as failure:
        raise ConfigError(
            f"{path} is not JSON", got=str(failure), expected="a JSON object", remedy="correct the file"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} is not a JSON object", got=type(values).__name__, expected="an object", remedy="correct the file"
        )
    return values, path.name


def _get(values: Mapping[str, Any], key: str) -> Any:
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, Mapping):
            return None
        node = node.get(part)
    return node


def _refuse_malformed(values: Mapping[str, Any], label: str) -> None:
    """Refuses sections that are none, and switches that DeepSpeed would read otherwise than they look."""
    for section in _SECTIONS:
        *above, name = section.split(".")
        node = values if not above else values.get(above[0], {})
        found = node.get(name, {})
        if not isinstance(found, Mapping) and not (name == "offload_optimizer" and found is None):
            raise ConfigError(
                f"{label}: {section!r} is not a section",
                got=json.dumps(found, default=str),
                expected="an object with keys of its own, or no such key",
                remedy=f"write the section's keys, or remove {section}",
            )
    for section in ("bf16", "fp16"):
        enabled = values.get(section, {}).get("enabled", False)
        if not isinstance(enabled, bool) and enabled != "auto":
            raise ConfigError(
                f"{label}: '{section}.enabled' is not a switch",
                got=json.dumps(enabled, default=str),
                expected="true | false",
                remedy=f"correct {section}.enabled",
            )


def _fill(values: dict[str, Any], key: str, wanted: Any, label: str, owner: str) -> None:
    found = values.get(key, "auto")
    if found != "auto" and found != wanted:
        raise ConfigError(
            f"{label}: {key!r} contradicts {owner}",
            got=f"{key}={found}",
            expected=f"{wanted} (from {owner})",
            remedy=f'write "{key}": "auto", or change {owner}',
        )
    values[key] = wanted


def _stage(zero: dict[str, Any], label: str) -> int:
    stage = zero.setdefault("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise ConfigError(
            f"{label}: unknown ZeRO stage",
            got=stage,
            expected="0 | 1 | 2 | 3",
            remedy="correct zero_optimization.stage",
        )
    return int(stage)


def _precision(values: dict[str, Any], label: str) -> Precision:
    enabled: list[Precision] = [kind for kind in ("bf16", "fp16") if _get(values, f"{kind}.enabled") is True]  # type: ignore[misc]
    if len(enabled) == 2:
        raise ConfigError(
            f"{label}: two precisions are enabled",
            got="bf16 and fp16",
            expected="one of them, or none (fp32)",
            remedy="remove one of the sections",
        )
    return enabled[0] if enabled else "fp32"


def _accumulation_dtype(values: dict[str, Any], precision: Precision, stage: int, label: str) -> Precision:
    """Always explicit: under bf16 DeepSpeed would add up micro-batches in bf16.

    ZeRO-0 has no fp32 accumulation for low precisions, and fp16 keeps its own type because its loss scaler watches it.
    """
    types = values.setdefault("data_types", {})
    default: Precision = precision if precision == "fp16" or stage == 0 else "fp32"
    found = types.get("grad_accum_dtype", "auto")
    if found not in ("auto", None, "fp32", precision):
        raise ConfigError(
            f"{label}: data_types.grad_accum_dtype does not fit {precision} weights",
            got=found,
            expected=f"fp32 | {precision}",
            remedy='write "auto"',
        )
    types["grad_accum_dtype"] = default if found in ("auto", None) else found
    return types["grad_accum_dtype"]  # type: ignore[no-any-return]


def _autos(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _autos(value, f"{prefix}{key}.")
        elif value == "auto":
            found.append(f"{prefix}{key}")
    return found
