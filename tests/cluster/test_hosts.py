"""``tools/launch.py hosts`` through pdsh, with a stand-in for ssh: a host is lost, and the run ends on the other one.

In a PID namespace of its own: DeepSpeed's pdsh launcher may pkill by pattern, which must not find other processes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster.nodes import ROOT, text, wait_for
from tests.integration.commands import environment, metrics, overrides

pytestmark = pytest.mark.timeout(1800)
LIMIT = 900
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def rank(below: psutil.Process, number: int) -> psutil.Process:
    """A rank's process, known by its environment."""
    for one in below.children(recursive=True):
        try:
            if "distmoe/train.py" in " ".join(one.cmdline()) and one.environ().get("RANK") == str(number):
                return one
        except psutil.Error:
            continue
    raise AssertionError(f"no rank {number}")


@pytest.mark.skipif(shutil.which("pdsh") is None, reason="no pdsh (apt-get install pdsh)")
@pytest.mark.skipif(
    subprocess.run([*UNSHARE, "true"], capture_output=True).returncode != 0, reason="no right to make a PID namespace"
)
def test_a_run_that_loses_a_host_goes_on_with_the_other_one(tmp_path: Path) -> None:
    (tmp_path / "hostfile").write_text("near slots=1\nfar slots=1\n")
    away, out = tmp_path / "away", tmp_path / "out"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").symlink_to(ROOT / "tests" / "cluster" / "ssh")
    variables = environment(tmp_path)
    variables |= {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{variables['PATH']}", "AWAY": str(away), "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [
        *UNSHARE, sys.executable, str(ROOT / "tools" / "launch.py"), "hosts", "--hostfile", str(tmp_path / "hostfile"),
        "--master_addr", "127.0.0.1", "--fewer", "--pause", "1", "--restarts", "2",
        *overrides(tmp_path, "schedule.num_steps=40", "run.eval_every=null", "checkpoint.every=5",
                   "run.log_every=1", "parallel.silence_seconds=10"),
    ]  # fmt: skip
    with out.open("w") as log:
        launcher = subprocess.Popen(
            command, env=variables, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    try:
        run = tmp_path / "run"
        wait_for(lambda: (run / "metrics.jsonl").is_file() and len(metrics(run)) > 10, seconds=LIMIT, what="ten steps")
        away.write_text("far\n")
        rank(psutil.Process(launcher.pid), 1).send_signal(signal.SIGKILL)
        assert launcher.wait(timeout=LIMIT) == 0, text(out)[-6000:]
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
            launcher.wait()
            time.sleep(0.1)
    said = text(out)
    assert "restart 1 of 2 since step_" in said
    assert "error: rank 1 on " in said
    assert "the number of data or tensor ranks has changed" in said
    assert (tmp_path / "run.launch" / "hostfile").read_text() == "near slots=1\n"
    assert [line["step"] for line in metrics(run) if "loss" in line] == list(range(1, 41))
