"""Training on two Slurm nodes with two ranks each, partitioned: preempted, and cut off from a node.

Both end with the weights of a run that nobody disturbed, bit for bit.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.nodes import ROOT, Nodes, text, wait_for
from tests.integration.commands import overrides

pytestmark = pytest.mark.timeout(1800)
LIMIT = 900
STEPS = 100


def arguments(folder: Path) -> list[str]:
    more = (
        "structure.grouping=family", "parallel.placement=partitioned", "parallel.timeout_minutes=3",
        f"schedule.num_steps={STEPS}", "run.eval_every=null", "checkpoint.every=25", "checkpoint.keep_last=20",
    )  # fmt: skip
    return overrides(folder, *more)


def submit(nodes: Nodes, folder: Path) -> int:
    folder.mkdir()
    return nodes.submit(
        "train.sbatch", *arguments(folder), out=folder / "out", DISTMOE_PYTHON=sys.executable, DS_ACCELERATOR="cpu",
        OMP_NUM_THREADS="1", TORCH_EXTENSIONS_DIR=str(folder / "extensions"),
    )  # fmt: skip


def ended(nodes: Nodes, job: int, folder: Path) -> dict[str, str]:
    facts = nodes.wait(job, seconds=LIMIT)
    assert facts["JobState"] == "COMPLETED", text(folder / "out")[-4000:]
    assert (folder / "run" / "checkpoints" / f"step_{STEPS}" / "manifest.json").is_file()
    return facts


def assert_equal_weights(one: Path, other: Path) -> None:
    """In a process of its own: this one stays free of torch."""
    code = (
        "import sys, torch; from pathlib import Path; from distmoe.checkpoint.consolidate import read_weights\n"
        "a, b = (read_weights(Path(p)) for p in sys.argv[1:])\n"
        "assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)"
    )
    step = Path("run", "checkpoints", f"step_{STEPS}")
    subprocess.run([sys.executable, "-c", code, one / step, other / step], check=True, cwd=ROOT, timeout=LIMIT)


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended(nodes, submit(nodes, folder), folder)
    return folder


def test_a_preempted_run_resumes_and_ends_bit_for_bit_equal(nodes: Nodes, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "preempted"
    job = submit(nodes, folder)
    metrics = folder / "run" / "metrics.jsonl"
    wait_for(lambda: text(metrics).count("\n") > 5, seconds=LIMIT, what="ten steps")
    nodes.run("scancel", "--batch", "--signal=USR1", str(job))
    facts = ended(nodes, job, folder)
    assert facts["Restarts"] == "1"
    assert "stopped by SIGUSR1" in text(folder / "out")
    assert "resumed from" in text(folder / "out")
    assert_equal_weights(undisturbed, folder)


def test_a_run_whose_node_dies_is_requeued_and_ends_bit_for_bit_equal(
    nodes: Nodes, undisturbed: Path, tmp_path: Path
) -> None:
    if not (nodes.folder / "node.n3").is_file():
        pytest.skip("no PID namespaces here: a node cannot be killed as a whole")
    folder = tmp_path / "cut"
    job = submit(nodes, folder)
    wait_for(lambda: (folder / "run/checkpoints/step_25/manifest.json").is_file(), seconds=LIMIT, what="a checkpoint")
    victim = nodes.run("scontrol", "show", "hostnames", nodes.facts(job)["NodeList"]).split()[1]
    nodes.kill_node(victim)
    ended(nodes, job, folder)
    assert "resumed from" in text(folder / "out")
    assert_equal_weights(undisturbed, folder)
