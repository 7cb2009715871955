"""Checkpoints of running engines: bit-exact resume at the same topology, the same numbers at any other.

All pairs of one world size share a start of the ranks; every save is loaded by the engine of the pair's second case.
"""

from __future__ import annotations

import os
import signal
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from distmoe.checkpoint.consolidate import read_moments, read_weights
from distmoe.checkpoint.store import clean, latest, steps
from distmoe.errors import CheckpointError
from tests.distributed.harness import RankError, run_ranks
from tests.distributed.parity import (
    BF16,
    COND,
    FP16,
    OFFLOAD,
    TASKS,
    TWO,
    Case,
    Trace,
    grouping_of,
    make_engine,
    reference,
    train_steps,
    zero,
)

pytestmark = pytest.mark.timeout(900)  # one start of the ranks trains all pairs

SAVED, LAST = 3, 5
Z3 = {"stage3_param_persistence_threshold": 0}


def _case(name: str, **changes: Any) -> Case:
    return Case(name=name, **({"partitions": TWO} | changes))


ZERO1, ZERO1_EP2 = _case("zero1", accumulation=2), _case("zero1 ep2", ep_size=2, accumulation=2)
ZERO2 = _case("zero2", config=zero(2), accumulation=2)
ZERO3 = _case("zero3", config=zero(3, **Z3), accumulation=2)
PARTITIONED = _case("partitioned", mode="partitioned", accumulation=2)

SAME = (
    ZERO1,
    ZERO2,
    ZERO3,
    ZERO1_EP2,
    PARTITIONED,
    _case("zero0 dense", dense=True, config=zero(0)),
    _case("zero1 conditional, half frozen", conditional=COND, freeze="lower_half", ep_size=2),
    _case("zero3 conditional, half frozen", conditional=COND, freeze="lower_half", config=zero(3, **Z3)),
    _case("zero1 bf16", config=zero(1, bf16=BF16)),
    _case("zero3 bf16", config=zero(3, bf16=BF16)),
    _case("zero2 fp16", config=zero(2, fp16=FP16)),
    _case("zero2 offload", config=zero(2, offload_optimizer=OFFLOAD)),
)
OTHER = ((ZERO1, ZERO3), (ZERO3, PARTITIONED), (PARTITIONED, ZERO1_EP2))


def resume_pairs(rank: int, root: str, pairs: list[tuple[Case, Case]]) -> list[dict[str, Any]]:
    """Worker: trains 5 steps with the first case, saving after 3; resumes with the second one; returns both ends.

    The third step is saved twice, at once and beside the last two steps.
    """
    from distmoe.checkpoint import store
    from distmoe.checkpoint.manifest import read_manifest
    from distmoe.engine.distributed import init_distributed

    init_distributed(timeout_minutes=5)
    beside = _saver_that_waits()
    answers = []
    for index, (first, second) in enumerate(pairs):
        engine, _, objective, process_groups = make_engine(first)
        whole, resumed = Trace(), Trace(gradients={"": torch.empty(0)})
        engine.train_mode()
        train_steps(first, engine, objective, range(SAVED), whole)
        state = {
            "tasks": TASKS,
            "grouping": grouping_of(first),
            "trainer_state": {"best": 0.5},
            "rank_state": {"rank": rank, "random": torch.arange(4) + rank},
        }
        folder = engine.save_state(Path(root) / str(index), **state)
        later = engine.save_state(Path(root) / "beside" / str(index), save=beside.save, **state)
        train_steps(first, engine, objective, range(SAVED, LAST), whole)
        beside.free.set()
        beside.wait()
        beside.free.clear()
        end = _state(engine)
        engine.destroy()
        process_groups.destroy()
        manifest = store.check(folder, tasks=TASKS, grouping=grouping_of(second))
        engine, _, objective, process_groups = make_engine(second)
        smaller = [fragment for fragment in engine.fragments() if fragment.view.name != "heads.bias"]
        with pytest.raises(CheckpointError, match=r"without heads\.bias"):  # on both ranks, or the next line would hang
            store.load(folder, manifest=manifest, fragments=smaller)
        loaded = engine.load_state(folder, manifest=manifest)
        assert loaded.trainer_state == {"best": 0.5}
        assert engine.global_steps == SAVED
        assert loaded.rank_state is not None
        assert loaded.rank_state["rank"] == rank
        assert loaded.rank_state["random"].tolist() == [rank, rank + 1, rank + 2, rank + 3]
        engine.train_mode()
        train_steps(second, engine, objective, range(SAVED, LAST), resumed)
        same_files = read_manifest(later).files == read_manifest(folder).files
        answers.append(
            {"whole": whole, "resumed": resumed, "end": end, "resumed end": _state(engine), "same files": same_files}
        )
        engine.destroy()
        process_groups.destroy()
    return answers


def _saver_that_waits() -> Any:
    """Writes beside training, and not before ``free`` is set."""
    from distmoe.checkpoint.saver import Saver
    from distmoe.parallel.process_groups import create_background

    saver: Any = Saver(keep=lambda root: None, background=create_background())
    saver.free, write = threading.Event(), saver._write

    def wait_and_write(*args: Any) -> None:
        assert saver.free.wait(300)
        write(*args)

    saver._write = wait_and_write
    return saver


def _state(engine: Any) -> list[tuple[str, int, torch.Tensor]]:
    model = [(name, 0, parameter.detach().clone()) for name, parameter in engine.module.named_parameters()]
    scale = torch.tensor(float(getattr(engine._ds.optimizer, "loss_scale", 1.0)))
    return [(f.key, f.lo, f.data.clone()) for f in engine.fragments()] + model + [("loss scale", 0, scale)]


@lru_cache
def resumed(folder: str) -> list[list[dict[str, Any]]]:
    pairs = [(case, case) for case in SAME] + list(OTHER)
    by_rank = run_ranks(resume_pairs, 2, folder, pairs, init_process_group=False, timeout=600)
    return [list(answer) for answer in zip(*by_rank, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.parametrize("case", SAME, ids=lambda case: case.name)
def test_resume_at_the_same_topology_is_bit_exact(case: Case, folder: str) -> None:
    for answer in resumed(folder)[SAME.index(case)]:
        assert answer["resumed"].losses == answer["whole"].losses[SAVED:]
        assert answer["resumed"].norms == answer["whole"].norms[SAVED:]
        for (key, lo, data), (key2, lo2, data2) in zip(answer["end"], answer["resumed end"], strict=True):
            assert (key, lo) == (key2, lo2)
            assert torch.equal(data, data2), key


@pytest.mark.parametrize("case", SAME, ids=lambda case: case.name)
def test_a_save_beside_training_writes_the_same_files(case: Case, folder: str) -> None:
    assert all(answer["same files"] for answer in resumed(folder)[SAME.index(case)])


@pytest.mark.parametrize("pair", OTHER, ids=lambda pair: f"{pair[0].name} to {pair[1].name}")
def test_another_topology_continues_with_the_same_numbers(pair: tuple[Case, Case], folder: str) -> None:
    for answer in resumed(folder)[len(SAME) + OTHER.index(pair)]:
        assert answer["resumed"].losses == pytest.approx(answer["whole"].losses[SAVED:], abs=1e-6)
        assert answer["resumed"].norms == pytest.approx(answer["whole"].norms[SAVED:], abs=1e-6)


@pytest.mark.parametrize("case", [ZERO1_EP2, ZERO3, PARTITIONED], ids=lambda case: case.name)
def test_one_process_reads_whole_weights_and_moments(case: Case, folder: str) -> None:
    resumed(folder)
    expected = reference(Case(name="three steps", partitions=TWO, accumulation=2, mode=case.mode, skipped_steps=(3, 4)))
    found = latest(Path(folder) / str(SAME.index(case)))
    assert found is not None
    weights, moments = read_weights(found), read_moments(found, "exp_avg")
    assert weights.keys() == expected.weights.keys() == moments.keys()
    for name, weight in expected.weights.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-6, rtol=0)
        torch.testing.assert_close(moments[name], expected.moments[f"exp_avg/{name}"], atol=1e-6, rtol=0)


def load_elsewhere(rank: int, folder: str, case: Case) -> tuple[list[float], list[float], bool]:
    """Worker: continues a checkpoint of another number of ranks."""
    from distmoe.checkpoint import store
    from distmoe.engine.distributed import init_distributed

    init_distributed(timeout_minutes=5)
    manifest = store.check(Path(folder), tasks=TASKS, grouping=grouping_of(case))
    engine, _, objective, _ = make_engine(case)
    loaded = engine.load_state(Path(folder), manifest=manifest)
    trace = Trace(gradients={"": torch.empty(0)})
    engine.train_mode()
    train_steps(case, engine, objective, range(SAVED, LAST), trace)
    return trace.losses, trace.norms, loaded.rank_state is None


@pytest.mark.parametrize(
    ("saved", "case"),
    [
        (ZERO1_EP2, _case("one", num_ranks=1, accumulation=2)),
        pytest.param(ZERO3, _case("four", num_ranks=4, ep_size=2, accumulation=2), marks=pytest.mark.slow),
    ],
    ids=["2 ranks to 1", "2 ranks to 4"],
)
def test_another_number_of_ranks_continues_with_the_same_numbers(saved: Case, case: Case, folder: str) -> None:
    whole = resumed(folder)[SAME.index(saved)][0]["whole"]
    found = latest(Path(folder) / str(SAME.index(saved)))
    answers = run_ranks(load_elsewhere, case.num_ranks, str(found), case, init_process_group=False)
    for losses, norms, fresh_rank_state in answers:
        assert losses == pytest.approx(whole.losses[SAVED:], abs=1e-6)
        assert norms == pytest.approx(whole.norms[SAVED:], abs=1e-6)
        assert fresh_rank_state  # random states of other ranks mean nothing here


def save_and_die(rank: int, root: str, beside: bool) -> None:
    """Worker: saves once; then rank 1 is killed in the middle of the second save, which may be beside training."""
    import torch.distributed.checkpoint as dcp

    from distmoe.checkpoint.saver import Saver
    from distmoe.engine.distributed import init_distributed
    from distmoe.parallel.process_groups import create_background

    init_distributed(timeout_minutes=5)
    saver = Saver(keep=lambda root: None, background=create_background() if beside else None)
    engine, _, objective, _ = make_engine(ZERO1)
    engine.train_mode()
    arguments = {"tasks": TASKS, "grouping": grouping_of(ZERO1), "trainer_state": {}, "rank_state": {}}
    train_steps(ZERO1, engine, objective, [0], Trace())
    engine.save_state(Path(root), save=saver.save, **arguments)
    saver.wait()
    train_steps(ZERO1, engine, objective, [1], Trace())
    write = dcp.save

    def write_then_die(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    dcp.save = write_then_die  # type: ignore[assignment]
    engine.save_state(Path(root), save=saver.save, **arguments)
    saver.wait()


@pytest.mark.parametrize(
    "beside",
    [pytest.param(False, id="at once"), pytest.param(True, id="beside training", marks=pytest.mark.slow)],
)
def test_a_killed_save_leaves_the_last_good_checkpoint(beside: bool, tmp_path: Path) -> None:
    with pytest.raises(RankError):
        run_ranks(save_and_die, 2, str(tmp_path), beside, init_process_group=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_1", "step_2.tmp"]
    assert [path.name for path in steps(tmp_path)] == ["step_1"]
    clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]
    assert read_weights(tmp_path / "step_1")
