"""``tools/launch.py``: what cannot work is refused in four parts before a rank starts; what fails is started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch

from distmoe.checkpoint import folders
from distmoe.checkpoint.consolidate import read_weights
from tests.integration.commands import ROOT, environment, metrics, overrides
from tests.integration.test_cluster_tools import tool

# Stand-in for ssh: host "away" does not answer, "apart" does not see our files, "bare" has no lo.
SSH = """#!/bin/bash
while [ $# -gt 0 ]; do case $1 in -[op]) shift 2 ;; *) break ;; esac; done
case $1 in away) echo "ssh: connect to host away port 22: No route to host" >&2; exit 255 ;; esac
[ "$1" = bare ] && echo eth0 || echo "eth0 lo"
[ "$1" = apart ] || echo shared
echo python
"""
SBATCH = """#!/bin/bash
echo "allocation failure: Node count specification invalid" >&2
exit 1
"""


@pytest.fixture
def launch() -> ModuleType:
    return tool("launch")


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("ssh", SSH), ("pdsh", "#!/bin/bash\n"), ("sbatch", SBATCH)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def hostfile(folder: Path, *hosts: str) -> list[str]:
    file = folder / "hostfile"
    file.write_text("".join(f"{host} slots=2\n" for host in hosts))
    return ["--hostfile", str(file)]


@dataclass(frozen=True)
class Case:
    """A command that is refused. ``hosts``: lines of its hostfile."""

    command: str
    message: str
    hosts: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


CASES = {
    "ranks do not divide the batch": Case("local --ranks 3", r"data.batch_size=16, 3 ranks\n.* a multiple of 3"),
    "blocks do not divide the ranks": Case(
        "slurm --nodes 1 --gpus_per_node 4 parallel.ep_size=8", r"4 ranks, parallel.ep_size=8"
    ),
    "nothing to resume": Case("local --ranks 2 --resume must", r"no complete checkpoint to resume from"),
    "no such interface here": Case(
        "local --ranks 2", r"GLOO_SOCKET_IFNAME=ib7, present: ", variables={"GLOO_SOCKET_IFNAME": "ib7"}
    ),
    "a host does not answer": Case("hosts", r"away of the hostfile cannot be reached[\s\S]*No route", ("near", "away")),
    "a host lacks the interface": Case(
        "hosts", r"bare lacks the network interface of GLOO[\s\S]*bare has eth0", ("near", "bare"),
        {"GLOO_SOCKET_IFNAME": "lo"},
    ),
    "a host does not see the folder": Case(
        "hosts", r"not shared by all hosts\n.*is not seen by apart", ("near", "apart")
    ),
    "the master has no name": Case("hosts --no_ssh", r"ranks meet does not resolve\n.*a.invalid", ("a.invalid", "b")),
    "a node that is not in the hostfile": Case("hosts --no_ssh --node_rank 2", r"--node_rank 2\n.*0 to 1", ("a", "b")),
    "a job that contradicts itself": Case(
        "slurm --nodes 2 --gpus_per_node 2 --sbatch=--ntasks-per-node=4", r"--ntasks-per-node contradicts the geometry"
    ),
    "a doctor beside a job": Case("slurm --nodes 4 --doctor", r"job of its own[\s\S]*--nodes=4 .*doctor.sbatch"),
    "a job that Slurm refuses": Case(
        "slurm --nodes 2 --gpus_per_node 2", r"Slurm would not accept[\s\S]*Node count"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_work_is_refused_in_four_parts_before_anything_starts(
    name: str, tmp_path: Path, launch: ModuleType, stand_ins: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    case = CASES[name]
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in case.variables.items():
        monkeypatch.setenv(variable, value)
    hosts = hostfile(tmp_path, *case.hosts) if case.hosts else []
    assert launch.main([*case.command.split(), *hosts, *overrides(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert re.search(case.message, said), said
    assert all(f"\n  {part}" in said for part in ("got:", "expected:", "remedy:"))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_prints_the_command_and_starts_nothing(
    tmp_path: Path, launch: ModuleType, stand_ins: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert launch.main(["hosts", *hostfile(tmp_path, "localhost", "far"), "--dry_run", *overrides(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"^DS_ENV_FILE=\S+ \S*deepspeed --hostfile \S+ --master_addr localhost --master_port \d+ ", printed
    )
    assert "model.hidden_size=32" in printed
    assert not (tmp_path / "run").exists()


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "tools" / "launch.py"), *arguments]
    with (folder / "log").open("a") as log:
        return subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=log, stderr=log, text=True)


def at_step(run: Path, step: int) -> None:
    end = time.monotonic() + 600
    while time.monotonic() < end:
        if (run / "metrics.jsonl").is_file() and any(line.get("step", 0) >= step for line in metrics(run)):
            return
        time.sleep(0.05)
    raise AssertionError(f"{run} did not reach step {step}")


def rank_of(launcher: int, rank: int) -> psutil.Process:
    below = psutil.Process(launcher).children(recursive=True)
    return next(one for one in below if f"--local_rank={rank}" in one.cmdline())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_whose_rank_dies_and_which_is_then_stopped_ends_like_one_that_was_left_alone(tmp_path: Path) -> None:
    more = ("schedule.num_steps=60", "run.eval_every=null", "checkpoint.every=10")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    local = ("local", "--ranks", "2", "--pause", "1")
    assert start(whole, *local, *overrides(whole, *more)).wait(timeout=600) == 0

    first = start(broken, *local, *overrides(broken, *more))
    at_step(broken / "run", 20)
    rank_of(first.pid, 1).send_signal(signal.SIGKILL)
    at_step(broken / "run", 40)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=600) == 128 + signal.SIGTERM
    said = (broken / "log").read_text()
    assert said.count("error: rank 1 on ") == 1, said
    assert "restart 1 of 3 since step_" in said
    assert "stopped by the file" in said
    assert folders.latest(broken / "run" / "checkpoints") is not None

    assert start(broken, *local, *overrides(broken, *more)).wait(timeout=600) == 0
    assert metrics(broken / "run") == metrics(whole / "run")
    expected, found = (read_weights(path / "run" / "checkpoints" / "step_60") for path in (whole, broken))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
