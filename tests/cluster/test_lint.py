from __future__ import annotations

import subprocess

import pytest

from tests.cluster.nodes import ROOT, SCRIPTS

SHIPPED = sorted((ROOT / "slurm").glob("*.sbatch"))
pytestmark = pytest.mark.usefixtures("slurm")


def lint(*scripts: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPTS / "lint.sh", *scripts], text=True, capture_output=True, timeout=120)


def test_every_shipped_script_is_accepted_by_sbatch():
    assert {path.stem for path in SHIPPED} == {"doctor", "train", "preprocess", "evaluate", "sweep"}
    done = lint(*SHIPPED)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_slurm_would_refuse_or_ignore_is_found(tmp_path):
    text = (ROOT / "slurm" / "train.sbatch").read_text()
    greedy, late = tmp_path / "greedy.sbatch", tmp_path / "late.sbatch"
    greedy.write_text(text.replace("--gpus-per-node=8", "--gpus-per-node=9"))
    late.write_text(text + "#SBATCH --time=1\n")
    assert lint(greedy).returncode != 0
    done = lint(late)
    assert done.returncode != 0
    assert "is ignored: line" in done.stdout
