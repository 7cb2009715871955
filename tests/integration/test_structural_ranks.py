"""Structural learning over ranks, partitioned or not, and killed at every stage: ``make test-structural``.

Each case prints a line of a table. Nothing is about which tasks belong together: the tolerance is large, every merge is
kept, and the partition at the end is the same for all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from distmoe.checkpoint import folders
from distmoe.checkpoint.consolidate import read_moments, read_weights
from distmoe.checkpoint.store import read_trainer_state
from tests.integration.commands import ROOT, TRAIN, metrics, overrides, run_ranks

DRIVERS = ROOT / "tests" / "integration" / "drivers"
LEARN = (
    "structure.grouping=per_task", "model.moe.experts_per_task_group=2", "schedule.num_steps=24", "run.log_every=1",
    "structure.learn={task_steps: 4, trial_steps: 3, similarity: cka, threshold: 0.6, probe_examples: 64, "
    "alignment_examples: 16, tolerance: 0.5}",
)  # fmt: skip
# Dropout's noise differs by rank.
CALM = ("model.dropout=0", "model.attention_dropout=0")

pytestmark = [pytest.mark.structural, pytest.mark.timeout(3000)]


@dataclass(frozen=True)
class Case:
    """A run that is compared with one process."""

    num_ranks: int
    ep_size: int
    placement: str
    stage: int
    batch_size: int = 16

    def settings(self) -> tuple[str, ...]:
        return (*LEARN, *CALM, f"data.batch_size={self.batch_size}", f"data.micro_batch_size={self.micro}")

    @property
    def micro(self) -> int:
        return self.batch_size // self.num_ranks

    def __str__(self) -> str:
        return f"{self.num_ranks} ranks, ep {self.ep_size}, {self.placement}, ZeRO-{self.stage}"


CASES = (
    Case(2, 1, "partitioned", 1),
    Case(2, 2, "partitioned", 1),
    Case(4, 1, "partitioned", 1),
    Case(4, 2, "partitioned", 1),
    Case(5, 1, "partitioned", 1, batch_size=20),
    Case(4, 2, "colocated", 1),
    Case(2, 1, "colocated", 2),
    Case(5, 1, "colocated", 1, batch_size=20),
)


def train(folder: Path, arguments: Sequence[str], *, num_ranks: int, script: Path = TRAIN) -> None:
    ended = run_ranks(folder, arguments, num_ranks=num_ranks, script=script)
    assert [one.code for one in ended] == [0] * num_ranks, ended[0].output


def phases(folder: Path) -> list[dict]:
    return [line["structure"] for line in metrics(folder / "run") if "structure" in line]


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in metrics(folder / "run") if "loss" in line}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ranks_learn_what_one_process_learns(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before, through and after two structural phases, on the same examples."""
    ranks, alone = tmp_path / "ranks", tmp_path / "alone"
    deepspeed = tmp_path / "deepspeed.json"
    deepspeed.write_text(json.dumps({"zero_optimization": {"stage": case.stage}}))
    parallel = (f"parallel.ep_size={case.ep_size}", f"parallel.placement={case.placement}",
                f"parallel.deepspeed={deepspeed}")  # fmt: skip
    train(ranks, ["--resume", "never", *overrides(ranks, *case.settings(), *parallel)], num_ranks=case.num_ranks)
    union = [str(case.num_ranks), str(case.ep_size), case.placement]
    one_process = [*case.settings()[:-1], "parallel.deepspeed=zero1_fp32"]
    train(alone, [*union, *overrides(alone, *one_process)], num_ranks=1, script=DRIVERS / "union.py")
    assert [record["grouping"] for record in phases(ranks)] == [record["grouping"] for record in phases(alone)]
    assert len(phases(ranks)) == 2
    expected, found = losses(alone), losses(ranks)
    assert expected.keys() == found.keys()
    assert len(expected) == 24
    worst = max(abs(found[step] / expected[step] - 1) for step in expected)
    lines = [line for line in metrics(ranks / "run") if "routing" in line]
    between = sum(layer["bytes_between_task_groups"] for line in lines for layer in line["routing"].values())
    inside = sum(layer["bytes"] for line in lines for layer in line["routing"].values())
    with capsys.disabled():
        print(f"\n{case}: losses differ by {worst:.1e} at most; bytes in blocks {inside:,}, between them {between}")
    assert worst <= 1e-5
    assert between == 0
    assert (inside > 0) == (case.ep_size > 1)


def digest(folder: Path) -> str:
    """Of all weights and both moments of the last checkpoint."""
    checkpoint = folder / "run" / "checkpoints" / "step_24"
    total = hashlib.sha256()
    for tensors in (
        read_weights(checkpoint), *(read_moments(checkpoint, part) for part in ("exp_avg", "exp_avg_sq"))
    ):  # fmt: skip
        for name in sorted(tensors):
            total.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


PARTITIONED = (*LEARN, "parallel.placement=partitioned", "parallel.deepspeed=zero1_fp32")
# (stage, moment, count, the checkpoint from which the run goes on, whether it names a plan on trial)
STAGES = (
    ("task phase", "backward", 2, None, False),
    ("compared, before the plan", "compare", 1, None, False),
    ("planned, before it is saved", "plan", 1, None, False),
    ("the plan's save, before its name", "rename", 1, None, False),
    ("the plan is saved", "commit", 1, 4, True),
    ("in the arm without merges", "backward", 6, 4, True),
    ("in the arm with merges, the recovery", "backward", 9, 4, True),
    ("the result's save, before its name", "rename", 2, 4, True),
    ("the result is saved", "commit", 2, 7, False),
    ("task phase of the new structure", "backward", 12, 8, False),
    ("second phase, in the recovery", "backward", 19, 11, True),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder, ["--resume", "never", *overrides(folder, *PARTITIONED)], num_ranks=2)
    return folder


@pytest.mark.parametrize(("stage", "moment", "count", "step", "pending"), STAGES, ids=[row[0] for row in STAGES])
def test_a_run_killed_at_this_stage_ends_like_one_left_alone(
    stage: str, moment: str, count: int, step: int | None, pending: bool, whole: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """kill -9 of rank 1 or, in a save, of rank 0, on two ranks with task groups of their own; then the same command."""
    rank = 0 if moment == "rename" else 1
    ended = run_ranks(
        tmp_path, [moment, str(count), str(rank), "SIGKILL", *overrides(tmp_path, *PARTITIONED)],
        script=DRIVERS / "interrupt.py",
    )  # fmt: skip
    assert ended[rank].code == -9, ended[rank].output
    latest = folders.latest(tmp_path / "run" / "checkpoints")
    assert (None if latest is None else latest.name) == (None if step is None else f"step_{step}")
    if latest is not None:
        structure = read_trainer_state(latest)["progress"]["structure"]
        assert (structure["pending"] is not None) == pending
    train(tmp_path, ["--resume", "auto", *overrides(tmp_path, *PARTITIONED)], num_ranks=2)
    expected, found = digest(whole), digest(tmp_path)
    with capsys.disabled():
        print(f"\nkilled: {stage:38s} went on from {step if latest else 'the start':>9}  {found} ({expected} whole)")
    assert found == expected
