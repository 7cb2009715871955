"""Regression tests for what DeepSpeed does silently; numbers are those of the table in ``docs/deepspeed.md``.

Traps 2, 3 and 9 (experts without tokens, ranks with disjoint tasks, clipping switched off) are cases of
``test_parity.py``; 7, 10, 12 and 15 are properties of the configuration: ``tests/unit/engine``. Every worker here has a
string hash seed of its own, as trap 1 needs.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distmoe.errors import ConfigError, ParallelError
from tests.distributed.harness import run_ranks
from tests.distributed.parity import TREE, TWO, Case, Trace, grouping_of, make_engine, placement_of, train_steps, zero

TWO_LAYOUTS = Case(name="two layouts", partitions=TREE, mode="partitioned")
MANY_PARAM_GROUPS = Case(name="many param groups", partitions=TWO, config=zero(2))
OVERFLOWING = Case(
    name="overflow", config=zero(2, fp16={"enabled": True, "loss_scale": 0, "initial_scale_power": 60, "hysteresis": 1})
)


def observe(rank: int) -> dict[str, Any]:
    """Worker: one start of the ranks for all observations."""
    from distmoe.engine.distributed import init_distributed

    init_distributed(timeout_minutes=5)
    return {
        "hash": hash("param group") % 1000,
        "param groups": _param_groups(TWO_LAYOUTS),
        "moments": _moments_after_one_step(MANY_PARAM_GROUPS),
        "differing dense": _refusal(_add_dense, rank),
        "differing order": _refusal(_swap_order, rank),
        "overflow": _overflow(),
        "non-finite": _non_finite(),
        "built": sorted(str(path) for path in Path(os.environ["TORCH_EXTENSIONS_DIR"]).rglob("*")),
    }


def _param_groups(case: Case) -> list[tuple[str, int]]:
    engine, _, _, process_groups = make_engine(case)
    found = [(p["name"], len(p["parameter_names"])) for p in engine._ds.optimizer.optimizer.param_groups]
    engine.destroy()
    process_groups.destroy()
    return found


def _moments_after_one_step(case: Case) -> set[str]:
    engine, _, objective, process_groups = make_engine(case)
    engine.train_mode()
    train_steps(case, engine, objective, [0], Trace())
    found = {f.key for f in engine.fragments() if f.key.startswith("exp_avg/") and f.data.abs().max() > 0}
    engine.destroy()
    process_groups.destroy()
    return found


def _refusal(change: Any, rank: int) -> str:
    """The error text when rank 1's model differs from rank 0's in its dense parameters."""
    from distmoe.engine.ds_config import resolve
    from distmoe.engine.initialize import initialize
    from distmoe.models.parameters import Role, parameter_roles
    from distmoe.parallel.process_groups import create
    from tests.distributed.parity import build, optimizer_config

    case = Case(name="differing", dense=True)
    process_groups = create(placement_of(case))
    model = build(case, process_groups.hosting)
    change(model, rank)
    settings = resolve(
        case.config,
        optimizer=optimizer_config(case),
        micro_batch_size=1,
        accumulation_steps=1,
        num_ranks=2,
        device_type="cpu",
    )
    roles = {name: parameter_roles(model).get(name, Role("dense", True, None)) for name, _ in model.named_parameters()}
    try:
        initialize(
            model,
            settings=settings,
            optimizer=optimizer_config(case),
            process_groups=process_groups,
            placement=None,
            roles=roles,
        )
    except ParallelError as error:
        return str(error)
    return "accepted"


def _add_dense(model: nn.Module, rank: int) -> None:
    if rank == 1:
        model.adapter = nn.Linear(2, 2)


def _swap_order(model: nn.Module, rank: int) -> None:
    names = ("first", "second") if rank == 0 else ("second", "first")
    for name in names:
        model.add_module(name, nn.Linear(2, 2))


def _overflow() -> list[tuple[float, bool, float]]:
    """fp16 with a loss scale of 2**60: skipped steps, each with half the scale, and unchanged weights."""
    engine, _, objective, process_groups = make_engine(OVERFLOWING)
    engine.train_mode()
    before = [f.data.clone() for f in engine.fragments()]
    trace, found = Trace(gradients={"": torch.empty(0)}), []
    for step in range(2):
        train_steps(OVERFLOWING, engine, objective, [step], trace)
        found.append((trace.norms[-1], engine._ds.skipped_steps == step + 1, engine._ds.optimizer.loss_scale))
    assert all(torch.equal(a, f.data) for a, f in zip(before, engine.fragments(), strict=True))
    engine.destroy()
    process_groups.destroy()
    return found


def _non_finite() -> dict[str, tuple[float, bool, bool]]:
    """(norm, skipped, weights unchanged) of a step in which one rank's loss is not a number."""
    from tests.distributed.parity import batch_of, examples

    found = {}
    for case in (
        Case(name="zero0", dense=True, config=zero(0)),
        Case(name="zero1"),
        Case(name="zero3", config=zero(3)),
    ):
        engine, _, objective, process_groups = make_engine(case)
        rank = torch.distributed.get_rank()
        engine.train_mode()
        before = [f.data.clone() for f in engine.fragments()]
        batch = batch_of([example for example in examples(case, 0, 0) if example.rank == rank], scale=1.0)
        loss = objective(engine(batch), batch).total
        engine.backward(loss * (float("nan") if rank == 1 else 1.0))
        result = engine.step(1.0)
        same = all(torch.equal(a, f.data) for a, f in zip(before, engine.fragments(), strict=True))
        found[case.name] = (result.grad_norm, result.skipped, same)
        engine.destroy()
        process_groups.destroy()
    return found


@lru_cache
def observed() -> list[dict[str, Any]]:
    return run_ranks(observe, 2, init_process_group=False, timeout=300)


@pytest.mark.slow
def test_trap_1_param_groups_have_one_order_whatever_the_hash_seed() -> None:
    first, second = observed()
    assert first["hash"] != second["hash"]  # iteration over a set of names would differ
    assert first["param groups"] == second["param groups"]
    names = [name for name, _ in first["param groups"]]
    assert names == [
        "dense-decay",
        "dense-no-decay",
        "gate-decay",
        "head-decay",
        "head-no-decay",
        *["ep_size_1"] * 2,
        *["ep_size_1_1-1"] * 2,
    ]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("differing dense", r"ranks 0 and 1 differ in their dense parameters"),
        ("differing order", r"ranks 0 and 1 differ in their dense parameters"),
    ],
)
def test_traps_4_and_5_dense_parameters_that_differ_between_ranks_are_refused_on_every_rank(
    change: str, difference: str
) -> None:
    for answer in observed():
        assert answer[change].startswith(difference[:40])
        assert "rank 1" in answer[change]
        assert "rank 0" in answer[change]


def test_trap_8_moments_of_every_parameter_can_be_read_after_the_first_step() -> None:
    from distmoe.parallel.process_groups import single_process
    from tests.distributed.parity import build

    model = build(MANY_PARAM_GROUPS, single_process(grouping_of(MANY_PARAM_GROUPS)).hosting)
    moved = set().union(*(answer["moments"] for answer in observed()))
    gates = {f"exp_avg/{name}" for name, _ in model.named_parameters() if ".pools." in name or "heads" in name}
    assert gates <= moved


def test_trap_11_starting_distributed_builds_no_extension() -> None:
    assert [answer["built"] for answer in observed()] == [[], []]


def test_an_fp16_overflow_skips_the_step_and_halves_the_scale() -> None:
    for answer in observed():
        assert answer["overflow"] == [(float("inf"), True, 2.0**59), (float("inf"), True, 2.0**58)]


def test_a_loss_that_is_not_finite_on_one_rank_changes_no_weight_on_any() -> None:
    for answer in observed():
        assert answer["non-finite"] == dict.fromkeys(("zero0", "zero1", "zero3"), (float("inf"), True, True))


def test_trap_6_partitioned_zero2_is_refused_before_anything_is_built() -> None:
    from distmoe.engine.ds_config import resolve
    from distmoe.engine.supported import check
    from tests.distributed.parity import optimizer_config

    case = Case(name="refused", partitions=TWO, mode="partitioned", config=zero(2))
    settings = resolve(
        case.config,
        optimizer=optimizer_config(case),
        micro_batch_size=1,
        accumulation_steps=1,
        num_ranks=2,
        device_type="cpu",
    )
    with pytest.raises(ConfigError, match=r"ZeRO-2 reduces in the order of the backward pass(.|\n)*use a ZeRO-1 file"):
        check(settings, placement=placement_of(case), num_ranks=2, routed=True)
