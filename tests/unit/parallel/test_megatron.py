from __future__ import annotations

import sys

import pytest

from distmoe.errors import ConfigError
from distmoe.parallel.megatron import megatron_tensor


def test_without_megatron_core_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megatron.core.model_parallel_config", None)
    with pytest.raises(ConfigError, match=r'tensor parallelism needs megatron-core[\s\S]*pip install -e "\.\[lm\]"'):
        megatron_tensor()
