"""The batch scripts on two nodes with two ranks each; a stand-in for python says what a rank sees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cluster.nodes import STAND_IN, Nodes, text, wait_for

pytestmark = pytest.mark.timeout(600)
PYTHON = {"DISTMOE_PYTHON": str(STAND_IN)}


def ready(out: Path, count: int = 4, word: str = "ready") -> None:
    wait_for(lambda: text(out).count(word) >= count, seconds=120, what=f"{count} x {word!r} in {out}")


def test_every_rank_knows_its_place_and_its_lines_say_who_wrote_them(nodes: Nodes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = nodes.submit("train.sbatch", "where", "--recipe", "demo", "a.b=c d", out=out, **PYTHON)
    assert nodes.wait(job, seconds=120)["JobState"] == "COMPLETED", text(out)
    lines = sorted(line for line in text(out).splitlines() if "rank" in line)
    assert lines == [
        f"{rank}: rank {rank} of 4 {rank % 2} 2 n{1 + rank // 2} n1 arguments --recipe demo a.b=c d"
        for rank in range(4)
    ]


def test_the_job_ends_with_the_code_of_the_rank_that_failed(nodes: Nodes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = nodes.submit("train.sbatch", "fail", "3", "5", out=out, **PYTHON)
    facts = nodes.wait(job, seconds=120)
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "5:0"), text(out)


def test_a_warning_reaches_all_ranks_and_the_job_goes_on_by_itself(nodes: Nodes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = nodes.submit("train.sbatch", "until-asked", str(tmp_path / "mark"), out=out, **PYTHON)
    ready(out)
    nodes.run("scancel", "--batch", "--signal=USR1", str(job))
    ready(out, word="saved")
    ready(out, word="resumed after 1 restarts")
    assert nodes.wait(job, seconds=180)["JobState"] == "COMPLETED", text(out)


def test_a_job_that_fails_after_a_warning_is_not_started_again(nodes: Nodes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = nodes.submit("train.sbatch", "fail-when-asked", out=out, **PYTHON)
    ready(out)
    nodes.run("scancel", "--batch", "--signal=USR1", str(job))
    facts = nodes.wait(job, seconds=120)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "7:0", "0"), text(out)


def test_a_job_that_fails_is_started_again_where_that_is_allowed(nodes: Nodes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = nodes.submit("train.sbatch", "fail-once", "7", out=out, DISTMOE_RESTARTS="1", DISTMOE_PAUSE="1", **PYTHON)
    facts = nodes.wait(job, seconds=180)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), text(out)
    assert "restart: the ranks ended with code 7; start 1 of 1 again in 1 s" in text(out)


def test_a_job_that_is_refused_is_never_started_again(nodes: Nodes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = nodes.submit("train.sbatch", "fail-once", "2", out=out, DISTMOE_RESTARTS="1", **PYTHON)
    facts = nodes.wait(job, seconds=180)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0"), text(out)


def test_tasks_that_are_not_one_rank_per_gpu_are_refused_in_four_lines(nodes: Nodes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = nodes.submit("train.sbatch", "where", out=out, options=("--gpus-per-node=1",), **PYTHON)
    facts = nodes.wait(job, seconds=120)
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0"), text(out)
    assert "got:      2 tasks per node with 1 GPUs" in text(out)
    assert "remedy:" in text(out)


def test_a_sweep_gives_each_job_its_line(nodes: Nodes, tmp_path: Path) -> None:
    file = tmp_path / "sweep.txt"
    file.write_text("run.seed=0\nrun.seed=1 optimizer.lr=1e-3\n")
    options = ("--array=1-2%1", "--nodes=1", "--ntasks-per-node=1")
    job = nodes.submit(
        "sweep.sbatch", str(file), "--recipe", "demo", out=tmp_path / "out-%a", options=options, **PYTHON
    )
    for index, line in ((1, "run.seed=0"), (2, "run.seed=1 optimizer.lr=1e-3")):
        wanted = f"0: arguments --recipe demo run.name=sweep-{index} {line}"
        out = tmp_path / f"out-{index}"
        wait_for(lambda out=out, wanted=wanted: wanted in text(out).splitlines(), seconds=120, what=wanted)
    assert job > 0


def test_a_node_that_dies_is_replaced_and_the_job_ends(nodes: Nodes, tmp_path: Path) -> None:
    """Last of this file: the node stays away. Slurm needs SlurmdTimeout (15 s) to notice, then requeues."""
    if not (nodes.folder / "node.n2").is_file():
        pytest.skip("no PID namespaces here: a node cannot be killed as a whole")
    out = tmp_path / "out"
    job = nodes.submit("train.sbatch", "until-restarted", out=out, **PYTHON)
    ready(out, word="on n2", count=2)
    nodes.kill_node("n2")
    facts = nodes.wait(job, seconds=300)
    assert facts["JobState"] == "COMPLETED", text(out)
    assert re.search(r"\d: on n3", text(out)), text(out)
