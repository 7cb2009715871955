"""Starts training as users do, with settings so small that a run takes seconds."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "distmoe" / "train.py"
LIMIT = 240  # seconds: a hang must fail the test, not the whole run

TINY = (
    "model.hidden_size=32", "model.num_layers=2", "model.num_heads=2", "model.intermediate_size=64",
    "model.moe.num_experts=4", "model.moe.layers=all", "tasks.suite.num_task_groups=2", "tasks.suite.tasks_per_group=2",
    "tasks.suite.train_examples=64", "tasks.suite.low_resource_examples=32", "tasks.suite.eval_examples=32",
    "data.batch_size=16", "data.max_length=32", "schedule.num_steps=12", "run.log_every=2", "run.eval_every=6",
    "checkpoint.every=4", "run.tensorboard=false", "run.report=false",
)  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    output: str


def overrides(folder: Path, *more: str, name: str = "run") -> list[str]:
    """Tiny settings that write below ``folder`` only; later values win."""
    return [f"run.output_dir={folder}", f"run.name={name}", f"data.cache_dir={folder / 'cache'}", *TINY, *more]


def environment(folder: Path) -> dict[str, str]:
    """A user's shell on a machine without GPU: no rank variables, no PYTHONPATH, one thread per rank."""
    hidden = {
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "PYTHONPATH",
    }
    return {key: value for key, value in os.environ.items() if key not in hidden} | {
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "DEEPSPEED_TIMEOUT": "2",
        "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def free_port() -> int:
    """Below the range from which the system deals ports by itself, so that nobody takes it before the ranks do."""
    draw = random.SystemRandom()
    while True:
        port = draw.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def launch(folder: Path, arguments: Sequence[str], *, num_ranks: int = 2) -> Finished:
    """``deepspeed --num_gpus N distmoe/train.py ARGUMENTS``, run in ``folder``."""
    launcher = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--num_gpus",
        str(num_ranks),
        "--master_port",
        str(free_port()),
    ]
    return _wait([_start([*launcher, str(TRAIN), *arguments], folder, {})])[0]


def run_alone(folder: Path, arguments: Sequence[str], script: Path = TRAIN) -> Finished:
    """``python distmoe/train.py ARGUMENTS``."""
    return _wait([_start([sys.executable, str(script), *arguments], folder, {})])[0]


def run_ranks(
    folder: Path, arguments: Sequence[str], *, script: Path = TRAIN, num_ranks: int = 2, limit: int = LIMIT
) -> list[Finished]:
    """One process per rank without a launcher, as below Slurm: every exit code can be seen."""
    port = str(free_port())
    children = []
    for rank in range(num_ranks):
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "LOCAL_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        children.append(_start([sys.executable, str(script), *arguments], folder, variables))
    return _wait(children, limit)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl`` without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("tokens_per_second", None)
        line.get("evaluation", {}).pop("seconds", None)
    return lines


def _start(command: list[str], folder: Path, variables: dict[str, str]) -> subprocess.Popen[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(folder) | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _wait(children: list[subprocess.Popen[str]], limit: int = LIMIT) -> list[Finished]:
    """Waits for all; kills their process groups at the limit, so that nothing outlives the test."""
    ended: list[Finished] = []
    try:
        for child in children:
            output = child.communicate(timeout=limit)[0]
            ended.append(Finished(output=output, code=child.returncode))
            limit = min(limit, LIMIT)  # ranks end together: when one has ended, the others have little left to do
        return ended
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"rank {len(ended)} hangs; before it ended: {ended}") from late
    finally:
        for child in children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
