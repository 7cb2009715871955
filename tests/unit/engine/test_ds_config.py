from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distmoe.engine.config import OptimizerConfig
from distmoe.engine.ds_config import CONFIG_FOLDER, DeepSpeedSettings, resolve
from distmoe.errors import ConfigError


def settings(source: Any, *, device_type: str = "cpu", **optimizer: Any) -> DeepSpeedSettings:
    return resolve(
        source,
        optimizer=OptimizerConfig(**optimizer),
        micro_batch_size=4,
        accumulation_steps=3,
        num_ranks=2,
        device_type=device_type,
    )


SHIPPED = sorted(CONFIG_FOLDER.glob("*.json"))
UNEQUAL = "zero1_bf16_unequal"  # DeepSpeed trains unequal numbers of expert copies only so


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_is_completed(path: Path) -> None:
    by_name, by_path = settings(path.stem), settings(path)
    assert by_name == by_path
    assert by_name.values["train_batch_size"] == 24
    assert by_name.values["gradient_accumulation_steps"] == by_name.accumulation_steps == 3
    assert "auto" not in json.dumps(by_name.values)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_traps_9_and_10_clipping_and_accumulation_type_are_always_written(path: Path) -> None:
    found = settings(path, gradient_clipping=0.25)
    assert found.values["gradient_clipping"] == 0.25
    assert found.values["data_types"]["grad_accum_dtype"] == found.accumulation_dtype
    assert found.precision != "bf16" or found.accumulation_dtype == ("bf16" if path.stem == UNEQUAL else "fp32")


def test_auto_is_zero1_in_bf16_on_a_gpu_and_fp32_on_a_cpu() -> None:
    cpu, gpu = settings("auto"), settings("auto", device_type="cuda")
    assert (cpu.stage, cpu.precision, gpu.stage, gpu.precision) == (1, "fp32", 1, "bf16")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"optimizer": {"type": "Adam"}},
            r"'optimizer' cannot be used: the recipe owns the optimizer(.|\n)*optimizer\.\*",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, r"'scheduler' cannot be used(.|\n)*schedule\.\*"),
        ({"zero_optimization": {"stage": 1, "round_robin_gradients": True}}, "round_robin_gradients"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, "offload_param"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
            r"to the CPU only(.|\n)*none \| cpu",
        ),
        ({"zero_optimization": {"stage": 4}}, r"unknown ZeRO stage(.|\n)*0 \| 1 \| 2 \| 3"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "two precisions"),
        (
            {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp16"}},
            r"does not fit bf16 weights(.|\n)*fp32 \| bf16",
        ),
        (
            {"gradient_clipping": 3.0},
            r"'gradient_clipping' contradicts optimizer\.gradient_clipping(.|\n)*3\.0(.|\n)*1\.0",
        ),
        ({"train_batch_size": 32}, r"'train_batch_size' contradicts data\.batch_size(.|\n)*=32(.|\n)*24"),
        ({"train_micro_batch_size_per_gpu": 2}, r"contradicts data\.micro_batch_size"),
        ({"gradient_accumulation_steps": 1}, r"contradicts data\.batch_size and data\.micro_batch_size"),
        (
            {"bf16": {"enabled": True, "check_grad_overflow": False}},
            r"'bf16.check_grad_overflow' cannot be used(.|\n)*False(.|\n)*expected: True",
        ),
        ({"bfloat16": {"enabled": True}}, r"'bfloat16' cannot be used(.|\n)*rename the section to bf16"),
        ({"bf16": {"enabled": 1}}, r"'bf16\.enabled' is not a switch(.|\n)*got: +1\n(.|\n)*true \| false"),
        ({"fp16": {"enabled": None}}, r"'fp16\.enabled' is not a switch(.|\n)*got: +null\n"),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, r"cpu_offload(.|\n)*use offload_optimizer"),
        ({"zero_optimization": True}, r"'zero_optimization' is not a section(.|\n)*got: +true\n"),
        ({"zero_optimization": {"offload_optimizer": "cpu"}}, r"offload_optimizer' is not a section(.|\n)*\"cpu\""),
        ({"data_types": None}, r"'data_types' is not a section(.|\n)*got: +null\n"),
        ({"bf16": True}, r"'bf16' is not a section(.|\n)*got: +true\n"),
        ({"elasticity": {}}, "DeepSpeed 0.19 removed it"),
        ({"flops_profiler": {"enabled": "auto"}}, r"cannot fill these \"auto\" fields(.|\n)*flops_profiler\.enabled"),
        ({"expert_parallel": {"enabled": True}}, r"parallel\.ep_size"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_contradictions_are_refused_and_name_both_sides(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(values)


def test_values_that_agree_with_the_recipe_are_accepted() -> None:
    values = {
        "train_batch_size": 24,
        "gradient_clipping": 1.0,
        "optimizer": "auto",
        "scheduler": "auto",
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
    }
    found = settings(values)
    assert "optimizer" not in found.values
    assert "scheduler" not in found.values
    assert "reduce_bucket_size" not in found.values["zero_optimization"]
    assert values["optimizer"] == "auto"  # the caller's dictionary is left alone


def test_offload_needs_no_compiled_optimizer() -> None:
    found = settings({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}}})
    assert found.offload
    assert found.values["zero_force_ds_cpu_optimizer"] is False
    assert found.values["zero_optimization"]["offload_optimizer"]["pin_memory"] is False


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"no such DeepSpeed configuration(.|\n)*zero9(.|\n)*zero1_bf16"):
        settings("zero9")


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "is not a JSON object")])
def test_a_broken_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        settings(path)
