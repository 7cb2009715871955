"""Runs a function on several gloo ranks, each a fresh process, and returns what every rank returned.

::

    def work(rank: int, scale: float) -> float:          # at module level, so that it can be pickled
        x = torch.full((), scale * rank)
        dist.all_reduce(x)
        return x.item()

    def test_sum_reaches_every_rank() -> None:
        assert run_ranks(work, 4, 0.5) == [3.0] * 4

The function's module is imported in every rank, so keep its imports cheap (DeepSpeed inside the function).
String hashes differ between ranks on purpose: iterating over a set of names then shows as a failure.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
_START_LIMIT = 240.0  # seconds for imports: on a busy machine they take longer than the test itself
_GRACE = 5.0  # seconds that other ranks get after the first failure, and that a hung rank gets to print its stack
_LOG_CHARACTERS = 4000


class RankError(RuntimeError):
    """A rank failed. ``rank`` says which, ``exception`` is what it raised (None if that cannot be pickled)."""

    def __init__(self, rank: int, text: str, exception: BaseException | None = None) -> None:
        super().__init__(f"rank {rank}: {text}")
        self.rank, self.exception = rank, exception


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: object,
    timeout: float = 60,
    init_process_group: bool = True,
    env: Mapping[str, str] | None = None,
) -> list[Any]:
    """Calls ``function(rank, *args)`` on ``world_size`` processes with an initialised gloo process group.

    Args:
        function: Module-level function; its return value must be picklable.
        world_size: Number of ranks, 1 included.
        args: Picklable arguments, equal on all ranks.
        timeout: Seconds for the function, counted from the end of the imports of all ranks; also the process group's
            timeout. A rank that is still running then prints its stack and is killed.
        init_process_group: False leaves it to the function; RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE and MASTER_*
            are set, ``env://`` works.
        env: Additional environment variables.

    Returns:
        The return values in order of rank.

    Raises:
        RankError: For the rank that failed first, with its traceback and the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="distmoe-ranks-") as name:
        folder = Path(name)
        (folder / "call.pickle").write_bytes(pickle.dumps((function, args, timeout, init_process_group)))
        # The parent serves the store on a port that the kernel chose: no two tests can want the same one.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        children: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(world_size):
                variables = _environment(rank, world_size, store.port, folder) | dict(env or {})
                children.append(_start(rank, folder, variables))
            _wait(children, folder, timeout)
        finally:
            for child in children:
                _kill(child)
        del store
        return _answers(children, folder, timeout)


def _environment(rank: int, world_size: int, port: int, folder: Path) -> dict[str, str]:
    own = {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # env:// joins the parent's store instead of opening one on rank 0
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "DEEPSPEED_TIMEOUT": "2",
        "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        "PYTHONHASHSEED": str(rank + 1),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if "lo" in {name for _, name in socket.if_nameindex()}:
        own["GLOO_SOCKET_IFNAME"] = "lo"  # a host name that maps to 127.0.1.1 would not connect
    return {**os.environ, **own}


def _start(rank: int, folder: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    with (folder / f"{rank}.log").open("wb") as log:
        command = [sys.executable, "-u", "-m", "tests.distributed.worker", str(folder)]
        return subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def _wait(children: list[subprocess.Popen[bytes]], folder: Path, timeout: float) -> None:
    """Returns when all ranks have ended, some time after the first failure, or at the time limit."""
    deadline, started = time.monotonic() + _START_LIMIT, False
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        if not started and all((folder / f"{rank}.started").exists() for rank in range(len(children))):
            deadline, started = time.monotonic() + timeout + _GRACE, True
        if any(child.poll() for child in children):
            deadline = min(deadline, time.monotonic() + _GRACE)
            started = True
        time.sleep(0.05)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Ends the rank and whatever it started: its own session's process group, nothing else."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _answers(children: list[subprocess.Popen[bytes]], folder: Path, timeout: float) -> list[Any]:
    values: list[Any] = []
    raised: list[tuple[float, RankError]] = []
    vanished: list[RankError] = []
    for rank, child in enumerate(children):
        output = (folder / f"{rank}.log").read_text(errors="replace")[-_LOG_CHARACTERS:]
        path = folder / f"{rank}.answer"
        if not path.exists():
            text = (
                f"ended with code {child.returncode} and without an answer (limit {timeout} s); its output:\n{output}"
            )
            vanished.append(RankError(rank, text))
            continue
        good, value = pickle.loads(path.read_bytes())
        if good:
            values.append(value)
            print(output, end="")
        else:
            exception, text, when = value
            raised.append((when, RankError(rank, f"{text}\noutput:\n{output}", exception)))
    # A rank that died without a word (killed, aborted, hung) is the cause of what the others then raise.
    died = [error for error in vanished if children[error.rank].returncode not in (None, -signal.SIGKILL)]
    for error in [*died, *(error for _, error in sorted(raised, key=lambda pair: pair[0])), *vanished]:
        raise error from error.exception
    return values
