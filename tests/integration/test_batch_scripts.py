"""The batch scripts with stand-ins for Slurm's commands: what ranks are told, and when a job queues again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.integration.commands import ROOT

# The ranks: say what they were told and end in order, after a warning to the batch shell where one is due.
SRUN = """#!/bin/bash
trap '' USR1
echo "launch $DISTMOE_LAUNCH arguments ${*: -2}"
[ -z "$WARN" ] || { kill -USR1 "$PPID"; sleep 0.2; }
"""
SCONTROL = """#!/bin/bash
case $1 in requeue) echo requeued; kill -KILL "$PPID" ;; *) echo node1 ;; esac
"""


def submit(folder: Path, script: str, *arguments: str, **variables: str) -> str:
    """What a job of one rank writes; a requeued job ends there, as it does below Slurm."""
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    job = {
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(folder), "DISTMOE_HOME": str(ROOT), "WARN": "",
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
    }  # fmt: skip
    command = ["bash", str(ROOT / "slurm" / script), *arguments]
    return subprocess.run(command, env=job | variables, text=True, capture_output=True, timeout=60).stdout


def test_a_job_that_queues_again_keeps_the_name_of_its_launch(tmp_path: Path) -> None:
    for restarts in ("0", "2"):
        said = submit(tmp_path, "train.sbatch", "--resume", "never", SLURM_RESTART_COUNT=restarts)
        assert said == "launch slurm-7 arguments --resume never\n"


def test_a_training_that_left_in_order_after_a_warning_queues_again(tmp_path: Path) -> None:
    assert "requeued" in submit(tmp_path, "train.sbatch", WARN="yes")


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "slurm").glob("*.sbatch")))
def test_only_jobs_whose_ranks_know_the_warning_ask_for_it(script: str) -> None:
    """A tool that does not end at the warning ends in order later: the job would queue again for ever."""
    text = (ROOT / "slurm" / script).read_text()
    assert ("--signal=B:USR1" in text) == ('distmoe/train.py "$@"' in text)
