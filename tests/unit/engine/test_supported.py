from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from distmoe.engine.config import OptimizerConfig
from distmoe.engine.ds_config import DeepSpeedSettings, resolve
from distmoe.engine.supported import TABLE, Combination, check, combination, lookup, markdown
from distmoe.errors import ConfigError
from distmoe.parallel.placement import HostClass, Placement, Span

DOCS = Path(__file__).parents[3] / "docs" / "deepspeed.md"


def settings(stage: int, **values: Any) -> DeepSpeedSettings:
    return resolve(
        {"zero_optimization": {"stage": stage}} | values,
        optimizer=OptimizerConfig(),
        micro_batch_size=1,
        accumulation_steps=1,
        num_ranks=4,
        device_type="cpu",
    )


def placement(*spans: tuple[int, int]) -> Placement:
    """One routed layer over 4 ranks; each span is (blocks, task groups)."""
    made, block, task_group = [], 0, 0
    for blocks, task_groups in spans:
        made.append(Span(tuple(range(block, block + blocks)), tuple(range(task_group, task_group + task_groups))))
        block, task_group = block + blocks, task_group + task_groups
    return Placement("partitioned", 4, 1, (tuple(made),), (HostClass(tuple(range(4)), (0,)),))


def routed(stage: int, spans: list[tuple[int, int]], **values: Any) -> Combination:
    return combination(settings(stage, **values), placement=placement(*spans), num_ranks=4, routed=True)


def test_spans_decide_whether_a_layout_is_partitioned_uniform_and_symmetric() -> None:
    def flags(*spans: tuple[int, int]) -> tuple[bool, bool, bool]:
        case = routed(1, list(spans))
        return case.partitioned, case.uniform, case.symmetric

    assert flags((4, 2)) == (False, True, True)
    assert flags((2, 1), (2, 1)) == (True, True, True)
    assert flags((3, 1), (1, 1)) == (True, False, True)
    assert flags((2, 2), (2, 1)) == (True, True, False)


def sliced(stage: int, spans: Sequence[tuple[int, int]] = ((4, 1),), routed: bool = True, **values: Any) -> Combination:
    """Dense matrices cut over two tensor ranks."""
    return combination(settings(stage, **values), placement=placement(*spans), num_ranks=4, routed=routed, tensor=2)


BF16 = {"bf16": {"enabled": True}}


@pytest.mark.parametrize(
    ("case", "reason", "remedy"),
    [
        (routed(0, [(4, 1)]), "norm without the experts", "zero1_fp32"),
        (routed(2, [(2, 1), (2, 1)]), "ZeRO-2 reduces in the order of the backward pass", "colocated"),
        (routed(3, [(2, 1), (2, 1)]), "not proven exact under ZeRO-3", "colocated"),
        (routed(1, [(3, 1), (1, 1)], **BF16), "no process group for the norm", "grad_accum_dtype"),
        (
            routed(1, [(2, 2), (2, 1)], zero_optimization={"stage": 1, "overlap_comm": True}),
            "unequal expert sizes",
            "overlap_comm",
        ),
        (routed(0, [(4, 1)], **BF16), "no fp32 master weights", "zero1_bf16"),
        (
            routed(3, [(4, 1)], zero_optimization={"stage": 3, "offload_optimizer": {"device": "cpu"}}),
            "ZeRO-1 and ZeRO-2 only",
            "zero2_offload",
        ),
        (sliced(0, routed=False), "ZeRO-0 has no norm over the slices", "zero1_fp32"),
        (sliced(3), "exactly with tensor parallelism", "zero1 or zero2"),
        (sliced(1, fp16={"enabled": True}), "exactly with tensor parallelism", "fp32 or bf16"),
    ],
)
def test_refused_combinations_have_a_reason_and_a_remedy(case: Combination, reason: str, remedy: str) -> None:
    row = lookup(case)
    assert not row.supported
    assert reason in row.note
    assert remedy in row.remedy


@pytest.mark.parametrize(
    "case",
    [
        routed(1, [(3, 1), (1, 1)]),
        routed(1, [(2, 1), (2, 1)], **BF16),
        routed(1, [(3, 1), (1, 1)], **BF16, data_types={"grad_accum_dtype": "bf16"}),
        routed(2, [(4, 2)], **BF16),
        routed(3, [(4, 2)]),
        sliced(1),
        sliced(1, [(3, 1), (1, 1)]),
        sliced(2, **BF16),
        combination(settings(0), placement=None, num_ranks=4, routed=False),
        Combination(stage=0, precision="fp32", routed=True, num_ranks=1),
    ],
)
def test_supported_combinations(case: Combination) -> None:
    assert lookup(case).supported


def test_trap_15_zero0_with_routed_layers_raises_before_anything_is_built() -> None:
    with pytest.raises(ConfigError, match=r"clips by a norm without the experts(.|\n)*remedy:   use a ZeRO-1 file"):
        check(settings(0), placement=placement((4, 1)), num_ranks=4, routed=True)


def test_a_row_for_all_stages_is_refused_with_the_stage_that_was_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"got: +ZeRO-3, fp32, tensor parallelism\n"):
        check(settings(3), placement=placement((4, 1)), num_ranks=4, routed=True, tensor=2)


def test_what_only_equal_spans_allow_is_refused_where_spans_may_change() -> None:
    """Two spans of two blocks now, perhaps of three and one after a merge; on one span nothing can become unequal."""
    equal = {"placement": placement((2, 1), (2, 1)), "num_ranks": 4, "routed": True}
    check(settings(1, **BF16), **equal)
    with pytest.raises(ConfigError, match=r"no process group for the norm(.|\n)*remedy: "):
        check(settings(1, **BF16), **equal, spans_may_change=True)
    check(settings(1), **equal, spans_may_change=True)
    check(settings(1, **BF16), placement=placement((4, 3)), num_ranks=4, routed=True, spans_may_change=True)


def test_refused_rows_have_remedies_and_the_last_row_catches_everything() -> None:
    assert all(row.remedy for row in TABLE if not row.supported)
    assert TABLE[-1].conditions() == ""


def test_the_documentation_shows_this_table() -> None:
    assert markdown() in DOCS.read_text()
