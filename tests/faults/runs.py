"""Small runs on forked ranks: started, killed from outside, watched to their end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.faults.rank import PRELOAD, Strike, run_rank
from tests.integration.commands import LIMIT, ROOT, environment, free_port

NUM_RANKS = 2
_CONTEXT = multiprocessing.get_context("forkserver")

SETTINGS = (
    "model.hidden_size=16", "model.num_layers=2", "model.num_heads=2", "model.intermediate_size=32",
    "model.moe.num_experts=4", "model.moe.layers=all", "tasks.suite.num_task_groups=2", "tasks.suite.tasks_per_group=2",
    "tasks.suite.train_examples=64", "tasks.suite.low_resource_examples=32", "tasks.suite.eval_examples=16",
    "data.batch_size=16", "data.max_length=32", "schedule.num_steps=24", "run.log_every=2", "run.eval_every=6",
    "checkpoint.every=2", "run.tensorboard=false", "run.report=false", "parallel.timeout_minutes=1",
)  # fmt: skip


def use_fork_server(extensions: Path) -> None:
    """Call it once, before the first run: the server's environment is that of all ranks."""
    os.environ.update(environment(extensions.parent) | {"TORCH_EXTENSIONS_DIR": str(extensions)})
    # The server does not know pytest's import path.
    os.environ["PYTHONPATH"] = str(ROOT)
    _CONTEXT.set_forkserver_preload(PRELOAD)


def overrides(folder: Path, cache: Path, *more: str) -> list[str]:
    """A run in ``folder/run``; the cache of token ids is shared, so that only the first run tokenizes."""
    return [f"run.output_dir={folder}", "run.name=run", f"data.cache_dir={cache}", *SETTINGS, *more]


@dataclass(frozen=True)
class Ended:
    """How the ranks of a run ended: exit codes, and the end of each one's output."""

    codes: tuple[int | None, ...]
    outputs: tuple[str, ...]


class Ranks:
    """The running ranks of one start of a run.

    Args:
        folder: Where they run, and where their output goes.
        arguments: Of ``distmoe/train.py``.
        num_ranks: How many.
        strikes: By rank.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        *,
        num_ranks: int = NUM_RANKS,
        strikes: Mapping[int, Strike] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = str(free_port())
        self._logs = [folder / f"{rank}.log" for rank in range(num_ranks)]
        self._children: list[BaseProcess] = []
        for rank, log in enumerate(self._logs):
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num_ranks),
                "LOCAL_WORLD_SIZE": str(num_ranks),
                "LOCAL_SIZE": str(num_ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            log.write_bytes(b"")
            strike = (strikes or {}).get(rank)
            values = (list(arguments), str(folder), str(log), variables, strike)
            child = _CONTEXT.Process(target=run_rank, args=values, daemon=True)  # type: ignore[attr-defined]
            child.start()
            self._children.append(child)

    def kill(self, ranks: Sequence[int]) -> None:
        """``kill -9`` now."""
        for rank in ranks:
            if self._children[rank].is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(self._children[rank].pid or 0), signal.SIGKILL)

    def wait(self, *, grace: float | None = None, limit: float = LIMIT) -> Ended:
        """Returns when all have ended.

        Args:
            grace: Seconds that the others get after the first bad end, as a launcher gives them; None: until the limit.
            limit: Seconds after which all are killed: a hang then shows as exit codes of -9.
        """
        deadline, graced = time.monotonic() + limit, grace is None
        while any(child.is_alive() for child in self._children) and time.monotonic() < deadline:
            if not graced and any(child.exitcode for child in self._children):
                deadline, graced = min(deadline, time.monotonic() + float(grace or 0)), True
            time.sleep(0.02)
        self.kill(range(len(self._children)))
        for child in self._children:
            child.join()
        outputs = tuple(log.read_text(errors="replace")[-6000:] for log in self._logs)
        return Ended(tuple(child.exitcode for child in self._children), outputs)
