"""Every arrangement of ranks reads the checkpoint of every other: ``make test-reshard`` prints the table.

Each cell saves after 3 steps at the row's arrangement and loads at the column's. Compared are the whole tensors of a
second save right after loading (weights and both moments, bit by bit), and the next 5 steps on the same global batches:
losses, gradient norms, and at their end weights and moments. The batches are given explicitly, nine examples of the
mixture per micro-step: partitioned placement draws per host class, so its own sampler would draw others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distmoe.checkpoint.consolidate import read_moments, read_weights
from tests.distributed.harness import run_ranks
from tests.distributed.parity import TASKS, TWO, Case, Trace, grouping_of, make_engine, train_steps, zero

pytestmark = [pytest.mark.reshard, pytest.mark.timeout(1800)]

SAVED, LAST = 3, 8
TOLERANCE = 1e-6  # sums over ranks have another order; parameters and losses are of size 1


def _case(name: str, ranks: int, ep_size: int, stage: int, mode: str = "colocated", tensor: int = 1) -> Case:
    # Persistent parameters would not be cut by ZeRO-3 at all; 16 experts: a task group's 8 are dealt to 4 ranks.
    config = zero(stage, stage3_param_persistence_threshold=0) if stage == 3 else zero(stage)
    return Case(name=name, num_ranks=ranks, tensor=tensor, ep_size=ep_size, mode=mode, config=config,
                partitions=TWO, num_experts=16, accumulation=2)  # fmt: skip


CASES = (
    _case("1 rank", 1, 1, 1),
    _case("2 ranks, ZeRO-1", 2, 1, 1),
    _case("2 ranks, EP 2, ZeRO-2", 2, 2, 2),
    _case("4 ranks, EP 2, ZeRO-1, partitioned", 4, 2, 1, "partitioned"),
    _case("4 ranks, EP 4, ZeRO-2", 4, 4, 2),
    _case("2 ranks, ZeRO-3", 2, 1, 3),
    _case("2 ranks, TP 2, ZeRO-2", 2, 1, 2, tensor=2),
    _case("4 ranks, TP 2, EP 2, ZeRO-1", 4, 2, 1, tensor=2),
)
BY_NAME = {case.name: case for case in CASES}


def save_and_go_on(rank: int, root: str, names: Sequence[str]) -> dict[str, Trace]:
    """Worker: per case, saves after 3 steps and after 5 more; returns losses and norms of these."""
    from distmoe.engine.distributed import init_distributed

    init_distributed(timeout_minutes=10)
    traces = {}
    for case in (BY_NAME[name] for name in names):
        engine, _, objective, process_groups = make_engine(case)
        engine.train_mode()
        train_steps(case, engine, objective, range(SAVED), _trace())
        _save(engine, case, Path(root) / "saved" / case.name)
        traces[case.name] = _trace()
        train_steps(case, engine, objective, range(SAVED, LAST), traces[case.name])
        _save(engine, case, Path(root) / "ended" / case.name)
        engine.destroy()
        process_groups.destroy()
    return traces


def load_and_go_on(rank: int, root: str, names: Sequence[str]) -> dict[tuple[str, str], Trace]:
    """Worker: a new engine of each case loads the checkpoint of every case, saves it at once and after 5 steps."""
    from distmoe.checkpoint import store
    from distmoe.engine.distributed import init_distributed

    init_distributed(timeout_minutes=10)
    traces = {}
    for case in (BY_NAME[name] for name in names):
        for source in CASES:
            engine, _, objective, process_groups = make_engine(case)
            folder = Path(root) / "saved" / source.name / f"step_{SAVED}"
            manifest = store.check(folder, tasks=TASKS, grouping=grouping_of(case))
            engine.load_state(folder, manifest=manifest)
            again = Path(root) / "again" / f"{source.name} at {case.name}"
            _save(engine, case, again)
            engine.train_mode()
            trace = traces[source.name, case.name] = _trace()
            train_steps(case, engine, objective, range(SAVED, LAST), trace)
            _save(engine, case, again)
            engine.destroy()
            process_groups.destroy()
    return traces


def _trace() -> Trace:
    return Trace(gradients={"": torch.empty(0)})  # not empty: first gradients are not collected


def _save(engine: Any, case: Case, root: Path) -> None:
    engine.save_state(root, tasks=TASKS, grouping=grouping_of(case), trainer_state={}, rank_state={})


@dataclass(frozen=True)
class Cell:
    """One pair of arrangements.

    Attributes:
        unequal: Entries of the checkpoint that changed a bit by being loaded and saved.
        step: Largest difference of losses and gradient norms over the next 5 steps.
        end: Largest difference of weights and moments after them.
    """

    unequal: tuple[str, ...]
    step: float
    end: float

    def __str__(self) -> str:
        return f"{'equal' if not self.unequal else f'{len(self.unequal)} differ'} {max(self.step, self.end):.0e}"


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Cell]:
    root = tmp_path_factory.mktemp("matrix")
    by_world = {ranks: [case.name for case in CASES if case.num_ranks == ranks] for ranks in (1, 2, 4)}
    saved: dict[str, Trace] = {}
    loaded: dict[tuple[str, str], Trace] = {}
    for function, traces in ((save_and_go_on, saved), (load_and_go_on, loaded)):
        for ranks, names in by_world.items():
            answers = run_ranks(function, ranks, str(root), names, init_process_group=False, timeout=900)
            traces.update(answers[0])  # type: ignore[attr-defined]  # losses and norms are equal on all ranks
    found = {}
    for source, target in loaded:
        again = root / "again" / f"{source} at {target}"
        before, after = _whole(root / "saved" / source / f"step_{SAVED}"), _whole(again / f"step_{SAVED}")
        assert before.keys() == after.keys()
        unequal = tuple(key for key in before if not torch.equal(before[key], after[key]))
        was, now = saved[source], loaded[source, target]
        step = max(abs(a - b) for a, b in zip(was.losses + was.norms, now.losses + now.norms, strict=True))
        ends, new = _whole(root / "ended" / source / f"step_{LAST}"), _whole(again / f"step_{LAST}")
        found[source, target] = Cell(unequal, step, max(float((ends[key] - new[key]).abs().max()) for key in ends))
    print(_table(found))
    return found


@lru_cache
def _whole(folder: Path) -> dict[str, Tensor]:
    """Weights and both moments of all tensors."""
    parts = {"fp32": read_weights(folder)} | {part: read_moments(folder, part) for part in ("exp_avg", "exp_avg_sq")}
    return {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}


def _table(found: dict[tuple[str, str], Cell]) -> str:
    names = list(BY_NAME)
    lines = ["", "saved at (rows), loaded at (columns): bits after loading; largest difference over the next 5 steps"]
    lines += [f"  {index}: {name}" for index, name in enumerate(names, start=1)]
    lines.append("    " + "".join(f"{index:>16}" for index in range(1, len(names) + 1)))
    for index, source in enumerate(names, start=1):
        lines.append(f"  {index} " + "".join(f"{found[source, target]!s:>16}" for target in names))
    return "\n".join(lines)


@pytest.mark.parametrize("target", BY_NAME)
@pytest.mark.parametrize("source", BY_NAME)
def test_a_checkpoint_is_the_same_at_every_arrangement(
    cells: dict[tuple[str, str], Cell], source: str, target: str
) -> None:
    cell = cells[source, target]
    assert cell.unequal == ()
    assert cell.step <= TOLERANCE
    assert cell.end <= TOLERANCE


@pytest.mark.parametrize("name", BY_NAME)
def test_where_it_was_saved_it_goes_on_bit_by_bit(cells: dict[tuple[str, str], Cell], name: str) -> None:
    assert (cells[name, name].step, cells[name, name].end) == (0.0, 0.0)
