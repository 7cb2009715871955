"""Learning the grouping and beginning again with it, over ranks and killed at every stage: ``make test-structural``.

Eight steps of learning and a trial, then twenty-four with what was kept; each case prints a line of a table.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.commands import overrides
from tests.integration.structural import COMMON, Case, compare, digest, kill, train


def learn(*options: str) -> tuple[str]:
    shared = "restart: true, task_steps: 8, alignment: 0, probe_examples: 64"
    return (f"structure.learn={{{', '.join((shared, *options))}}}",)


# How training goes on depends on what the trial keeps.
LAST_ARM = learn("trial_steps: 8", "similarity: cka", "threshold: 0.6", "tolerance: 0.5")  # behind the last arm
ONCE_MORE = learn("trial_steps: 8", "similarity: answers", "tolerance: 0.5")  # an earlier arm, trained once more
# At so high a rate joining all tasks costs 4 % at once: nothing is kept, and training goes on from step 8.
GO_BACK = (*learn("trial_steps: 8", "similarity: cka", "threshold: 0.6", "confidence: 0"), "optimizer.lr=3e-2")
NO_TRIAL = learn("trial_steps: 0", "similarity: answers")
CASES = (
    ("last arm", LAST_ARM, [1, 1], Case(2, 1, "colocated", 1)),
    ("last arm", LAST_ARM, [1, 1], Case(4, 2, "partitioned", 1)),
    ("once more", ONCE_MORE, [1, 1], Case(2, 1, "partitioned", 1)),
    ("once more", ONCE_MORE, [1, 1], Case(4, 1, "colocated", 2)),
    ("go back", GO_BACK, [4, 4], Case(2, 1, "partitioned", 1)),
    ("no trial", NO_TRIAL, [2, 2], Case(4, 1, "partitioned", 1)),
)

pytestmark = [pytest.mark.structural, pytest.mark.timeout(3000)]


@pytest.mark.parametrize(("how", "options", "sizes", "case"), CASES, ids=[f"{row[0]}: {row[3]}" for row in CASES])
def test_ranks_begin_again_as_one_process_does(
    how: str, options: tuple[str, ...], sizes: list[int], case: Case, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The same grouping, the same losses while learning and with it, the same weights at the end."""
    found = compare(case, options, tmp_path)
    (phase,) = found.phases
    with capsys.disabled():
        print(f"\n{how:9s}  {case}: losses differ by {found.loss:.1e} at most, weights by {found.weight:.1e}; "
              f"bytes in blocks {found.inside:,}, between them {found.between}")  # fmt: skip
    assert found.steps == list(range(1, 25))
    assert [len(partition) for partition in phase["grouping"]] == sizes
    assert found.loss <= 1e-5
    # Adam divides by the root of a gradient's mean square: of tiny ones rounding decides, at a rate of 3e-2 visibly.
    assert found.weight <= (1e-2 if how == "go back" else 1e-5)
    assert found.between == 0
    assert (found.inside > 0) == (case.ep_size > 1)


PARTITIONED = (*COMMON, *ONCE_MORE, "parallel.placement=partitioned", "parallel.deepspeed=zero1_fp32")
# (stage, moment, count, the checkpoint from which the run goes on, whether it names plans on trial)
STAGES = (
    ("learning", "backward", 6, 4, False),
    ("planned, before it is saved", "plan", 1, 6, False),
    ("the plan is saved", "commit", 3, 8, True),
    ("in the first arm, from step 0", "backward", 12, 8, True),
    ("what was kept, once more", "backward", 28, 8, True),
    ("the result's save, before its name", "rename", 4, 8, True),
    ("the result is saved", "commit", 4, 8, False),
    ("training with the grouping", "backward", 38, 12, False),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder, ["--resume", "never", *overrides(folder, *PARTITIONED)], num_ranks=2)
    return folder


@pytest.mark.parametrize(("stage", "moment", "count", "step", "pending"), STAGES, ids=[row[0] for row in STAGES])
def test_a_run_killed_at_this_stage_begins_again_like_one_left_alone(
    stage: str, moment: str, count: int, step: int, pending: bool, whole: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """kill -9 of rank 1 or, in a save, of rank 0, on two ranks with task groups of their own; then the same command."""
    interrupted = overrides(tmp_path, *PARTITIONED)
    structure = kill(tmp_path, moment, count, interrupted, latest=f"step_{step}")
    assert (structure["pending"] is not None) == pending
    train(tmp_path, ["--resume", "auto", *interrupted], num_ranks=2)
    expected, found = digest(whole), digest(tmp_path)
    with capsys.disabled():
        print(f"\nkilled: {stage:34s} went on from step_{step:<2d}  {found} ({expected} whole)")
    assert found == expected
