"""Structural learning over ranks, partitioned or not, and killed at every stage: ``make test-structural``.

Each case prints a line of a table. Nothing is about which tasks belong together: the tolerance is large, every merge is
kept, and the partition at the end is the same for all.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.commands import overrides
from tests.integration.structural import COMMON, Case, compare, digest, kill, train

LEARN = (
    "structure.learn={task_steps: 4, trial_steps: 3, similarity: cka, threshold: 0.6, probe_examples: 64, "
    "alignment_examples: 16, tolerance: 0.5}",
)

pytestmark = [pytest.mark.structural, pytest.mark.timeout(3000)]

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


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ranks_learn_what_one_process_learns(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before, through and after two structural phases, on the same examples."""
    found = compare(case, LEARN, tmp_path)
    assert len(found.phases) == 2
    with capsys.disabled():
        print(f"\n{case}: losses differ by {found.loss:.1e} at most; "
              f"bytes in blocks {found.inside:,}, between them {found.between}")  # fmt: skip
    assert found.steps == list(range(1, 25))
    assert found.loss <= 1e-5
    assert found.between == 0
    assert (found.inside > 0) == (case.ep_size > 1)


PARTITIONED = (*COMMON, *LEARN, "parallel.placement=partitioned", "parallel.deepspeed=zero1_fp32")
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
    arguments = overrides(tmp_path, *PARTITIONED)
    structure = kill(tmp_path, moment, count, arguments, latest=None if step is None else f"step_{step}")
    assert structure is None or (structure["pending"] is not None) == pending
    train(tmp_path, ["--resume", "auto", *arguments], num_ranks=2)
    expected, found = digest(whole), digest(tmp_path)
    with capsys.disabled():
        print(f"\nkilled: {stage:38s} went on from {step or 'the start':>9}  {found} ({expected} whole)")
    assert found == expected
