from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distmoe.engine.deepspeed_folder import check, markdown, write
from distmoe.errors import ConfigError
from tests.unit.engine.test_supported import settings

DOCS = Path(__file__).parents[3] / "docs" / "checkpoints.md"
DENSE: dict[str, Any] = {"routed": False, "ep_size": 1, "partitioned": False}
ROUTED = DENSE | {"routed": True}


@pytest.mark.parametrize(("stage", "case"), [(0, DENSE), (1, DENSE), (2, DENSE), (3, DENSE), (1, ROUTED), (2, ROUTED)])
def test_a_model_that_every_rank_holds_is_written(stage: int, case: dict[str, Any]) -> None:
    check(settings(stage), **case)


@pytest.mark.parametrize(
    ("stage", "case", "reason", "remedy"),
    [
        (1, ROUTED | {"ep_size": 2}, "would lack the other ranks' experts", "set parallel.ep_size=1"),
        (1, ROUTED | {"partitioned": True}, "ranks hold different task groups", "parallel.placement=colocated"),
        (3, ROUTED, "no test has shown", "use a ZeRO-1 or ZeRO-2 file"),
    ],
)
def test_what_deepspeed_could_not_read_back_is_refused(
    stage: int, case: dict[str, Any], reason: str, remedy: str
) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){reason}.*{remedy}, or checkpoint.format=distmoe"):
        check(settings(stage), **case)


def test_an_offloaded_optimizer_is_refused() -> None:
    offloaded = settings(2, zero_optimization={"stage": 2, "offload_optimizer": {"device": "cpu"}})
    with pytest.raises(ConfigError, match="optimizer offload"):
        check(offloaded, **DENSE)


def test_deepspeed_sees_routed_layers_again_after_a_save_that_failed(tmp_path: Path) -> None:
    seen = []

    def fail(folder: str, *, tag: str) -> None:
        seen.append((engine.has_moe_layers, folder, tag))
        raise OSError("disk full")

    engine = SimpleNamespace(has_moe_layers=True, save_checkpoint=fail)
    with pytest.raises(OSError, match="full"):
        write(engine, tmp_path, "step_3")
    assert seen == [(False, str(tmp_path), "step_3")]
    assert engine.has_moe_layers


def test_the_table_of_the_docs_is_the_one_that_decides() -> None:
    assert markdown() in DOCS.read_text()
