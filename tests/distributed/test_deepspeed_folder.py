"""DeepSpeed's own folder: DeepSpeed's ``load_checkpoint`` and ``zero_to_fp32`` read back what a run wrote."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from distmoe.checkpoint.consolidate import read_weights
from tests.distributed.harness import run_ranks
from tests.distributed.parity import BF16, FP16, TASKS, TWO, Case, Trace, grouping_of, make_engine, train_steps, zero

pytestmark = pytest.mark.timeout(600)

Z3 = {"stage3_param_persistence_threshold": 0}
QUICK = (Case(name="zero1 dense", dense=True), Case(name="zero2 routed", partitions=TWO, config=zero(2)))
SLOW = (
    Case(name="zero1 bf16 routed", partitions=TWO, config=zero(1, bf16=BF16)),
    Case(name="zero2 bf16 routed", partitions=TWO, config=zero(2, bf16=BF16)),
    Case(name="zero2 fp16 dense", dense=True, config=zero(2, fp16=FP16)),
    Case(name="zero0 dense", dense=True, config=zero(0)),
    Case(name="zero2 half frozen", partitions=TWO, freeze="lower_half", config=zero(2)),
    Case(name="zero3 dense", dense=True, config=zero(3, **Z3)),
)
CASES = [
    *(pytest.param(case, QUICK, id=case.name) for case in QUICK),
    *(pytest.param(case, SLOW, id=case.name, marks=pytest.mark.slow) for case in SLOW),
]
SAVED = 2


def round_trips(rank: int, folder: str, cases: tuple[Case, ...]) -> list[dict[str, Any]]:
    """Worker: saves after two steps, trains a third; loads with DeepSpeed into a fresh engine and repeats the third."""
    from distmoe.engine import compatibility
    from distmoe.engine.distributed import init_distributed

    init_distributed(timeout_minutes=5)
    answers = []
    for case in cases:
        root = Path(folder) / case.name
        engine, _, objective, process_groups = make_engine(case)
        whole, resumed = Trace(), Trace(gradients={"": torch.empty(0)})
        engine.train_mode()
        train_steps(case, engine, objective, range(SAVED), Trace())
        arguments = {"tasks": TASKS, "grouping": grouping_of(case), "trainer_state": {}, "rank_state": {}}
        engine.save_state(root / "checkpoints", **arguments)
        written = engine.save_deepspeed(root / "deepspeed")
        saved = [(fragment.key, fragment.lo, fragment.data.clone()) for fragment in engine.fragments()]
        train_steps(case, engine, objective, [SAVED], whole)
        engine.destroy()
        process_groups.destroy()

        engine, _, objective, process_groups = make_engine(case)
        with compatibility.as_data_parallel(engine._ds):
            path, _ = engine._ds.load_checkpoint(str(root / "deepspeed"))  # the tag that "latest" names
        loaded = engine.fragments()
        engine.train_mode()
        pairs = zip(saved, loaded, strict=True)
        equal = [
            (key, lo) == (found.key, found.lo) and torch.equal(data, found.data) for (key, lo, data), found in pairs
        ]
        train_steps(case, engine, objective, [SAVED], resumed)
        answers.append(
            {
                "written": written.name,
                "found": path is not None,
                "equal": all(equal),
                "steps": engine.global_steps,
                "losses": (whole.losses, resumed.losses),
            }
        )
        engine.destroy()
        process_groups.destroy()
    return answers


@lru_cache
def answers(folder: str, cases: tuple[Case, ...]) -> list[list[dict[str, Any]]]:
    return run_ranks(round_trips, 2, folder, cases, init_process_group=False, timeout=500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("deepspeed"))


@pytest.mark.parametrize(("case", "cases"), CASES)
def test_deepspeed_loads_its_folder_bit_for_bit(case: Case, cases: tuple[Case, ...], folder: str) -> None:
    for rank in answers(folder, cases):
        answer = rank[cases.index(case)]
        assert (answer["written"], answer["found"], answer["steps"]) == ("step_2", True, SAVED + 1)
        assert answer["equal"]
        assert answer["losses"][0] == answer["losses"][1]


@pytest.mark.parametrize(("case", "cases"), [one for one in CASES if one.id != "zero1 bf16 routed"])
def test_deepspeeds_consolidation_gives_the_weights_of_distmoes_checkpoint(
    case: Case, cases: tuple[Case, ...], folder: str
) -> None:
    answers(folder, cases)
    root = Path(folder) / case.name
    if case.config["zero_optimization"]["stage"] == 0:
        file = root / "deepspeed" / "step_2" / "mp_rank_00_model_states.pt"
        found = torch.load(file, weights_only=False)["module"]
    else:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        found = get_fp32_state_dict_from_zero_checkpoint(str(root / "deepspeed"))
    expected = read_weights(root / "checkpoints" / "step_2")
    assert found.keys() == {f"model.{name}" for name in expected}
    assert all(torch.equal(found[f"model.{name}"], weight) for name, weight in expected.items())
