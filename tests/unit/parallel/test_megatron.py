from __future__ import annotations

import sys
from datetime import timedelta

import pytest

from distmoe.errors import ConfigError
from distmoe.parallel.megatron import megatron_tensor, start_parallel_state


def test_without_megatron_core_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megatron.core.model_parallel_config", None)
    with pytest.raises(ConfigError, match=r'tensor parallelism needs megatron-core[\s\S]*pip install -e "\.\[lm\]"'):
        megatron_tensor()


def test_process_groups_wait_as_long_as_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    state = pytest.importorskip("megatron.core.parallel_state")
    asked: list[float] = []
    monkeypatch.setattr(
        state, "initialize_model_parallel", lambda **values: asked.append(values["distributed_timeout_minutes"])
    )
    for minutes in (1.4, 2.5):
        start_parallel_state(2, timedelta(minutes=minutes))
    assert asked == [1.4, 2.5]
