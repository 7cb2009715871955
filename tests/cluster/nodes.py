"""A real Slurm of three nodes on this host, and jobs on it. Everything is bounded in time and ended by pid."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).parent / "slurm"
STAND_IN = Path(__file__).parent / "stand_in.py"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")  # a job after NODE_FAIL is started again
# Two nodes with two ranks each, whatever a script asks for by itself.
GEOMETRY = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1", "--time=30")


def missing() -> str | None:
    """Why no Slurm can be started here; None: it can."""
    absent = [name for name in ("slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install slurmctld slurmd slurm-client)"
    return None if os.geteuid() == 0 else "slurmd must be started by root"


@dataclass(frozen=True)
class Nodes:
    """The running cluster; ``folder`` holds its configuration, state and logs."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        hidden = (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "MASTER_ADDR",
            "MASTER_PORT",
            "PYTHONPATH",
            "CUDA_VISIBLE_DEVICES",
        )
        return {key: value for key, value in os.environ.items() if key not in hidden} | {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "DISTMOE_HOME": str(ROOT),
        }

    def submit(self, script: str, *arguments: str, out: Path, options: tuple[str, ...] = (), **variables: str) -> int:
        """``sbatch`` of ``slurm/SCRIPT`` with the small geometry; returns the job id. Output goes to ``out``."""
        command = ["sbatch", "--parsable", *GEOMETRY, f"--output={out}", *options, str(ROOT / "slurm" / script)]
        done = subprocess.run(
            [*command, *arguments],
            env=self.environment | variables,
            text=True,
            capture_output=True,
            timeout=60,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split(";")[0])

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, text=True, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def facts(self, job: int) -> dict[str, str]:
        """``scontrol show job``, as names and values."""
        return dict(
            word.split("=", 1) for word in self.run("scontrol", "-d", "show", "job", str(job)).split() if "=" in word
        )

    def wait(self, job: int, *, seconds: float) -> dict[str, str]:
        """Waits until the job has ended for good; returns its facts."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            facts = self.facts(job)
            if facts["JobState"] in ENDED:
                return facts
            time.sleep(0.2)
        raise AssertionError(f"job {job} did not end: {self.facts(job)}")

    def kill_node(self, name: str) -> None:
        """Power cut: the first process of the node's PID namespace goes, and everything in it."""
        os.kill(int((self.folder / f"node.{name}").read_text()), signal.SIGKILL)


def wait_for(condition: object, *, seconds: float, what: str) -> None:
    """Polls a function until it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


def text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
