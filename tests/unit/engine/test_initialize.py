"""What is compared with DeepSpeed's engine as it was just made, on a stand-in."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from distmoe.engine.initialize import _check_precision
from distmoe.errors import ConfigError


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("found", ["fp32", "bf16", "fp16"])
def test_deepspeed_must_train_in_the_precision_that_was_read(precision: str, found: str) -> None:
    ds_engine = SimpleNamespace(fp16_enabled=lambda: found == "fp16", bfloat16_enabled=lambda: found == "bf16")
    settings: Any = SimpleNamespace(source="mine.json", precision=precision)
    with (
        nullcontext()
        if found == precision
        else pytest.raises(
            ConfigError,
            match=rf"mine\.json: DeepSpeed trains in another(.|\n)*got: +{found}\n +expected: {precision}\n",
        )
    ):
        _check_precision(ds_engine, settings)
