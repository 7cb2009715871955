"""Starting and ending torch.distributed under DeepSpeed, without the surprises of a CPU machine.

Measured on gloo with DeepSpeed 0.19.8: every CPU ``init_distributed`` compiles a shared-memory extension, which
needs a compiler, takes a minute and hangs silently behind a stale lock; and a process that leaves gloo's threads
running at exit aborts now and then with "terminate called without an active exception".
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import warnings
from datetime import timedelta

import torch.distributed as dist

from distmoe.engine import extension_builds
from distmoe.engine.compatibility import check_version
from distmoe.errors import RendezvousError
from distmoe.log import get_logger
from distmoe.parallel.env import RankEnv, read_env
from distmoe.parallel.guard import arm

_log = get_logger(__name__)


def init_distributed(*, timeout_minutes: float = 10.0, guard: bool = False) -> RankEnv:
    """Joins the world of the launcher (or stands alone without one) and returns this process's place in it.

    Args:
        timeout_minutes: A collective that waits longer ends the job. Small values end a hang sooner, but a rank that
            tokenizes a large data set while the others wait at a barrier needs its time.
        guard: Compare the sequence of collectives on all ranks (:mod:`distmoe.parallel.guard`).

    Raises:
        ConfigError: If the installed DeepSpeed is not the pinned one.
        ParallelError: If the launcher's variables are incomplete.
        RendezvousError: If the ranks do not meet.
    """
    check_version()
    env = read_env()
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    _quieten()
    # gloo does the work as well; the compiled op would need a compiler on every CPU machine.
    __compatible_ops__["deepspeed_shm_comm"] = False
    _warn_of_stale_locks()
    if not dist.is_initialized():
        if guard:
            arm()
        try:
            deepspeed.init_distributed(
                auto_mpi_discovery=False, verbose=False, timeout=timedelta(minutes=timeout_minutes)
            )
        except (dist.DistError, RuntimeError) as failure:
            raise _no_meeting(env, failure, timeout_minutes) from failure
    return env


def _no_meeting(env: RankEnv, failure: RuntimeError, timeout_minutes: float) -> RendezvousError:
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    said = str(failure).strip().splitlines() or [type(failure).__name__]
    return RendezvousError(
        "the ranks did not meet",
        got=f"{said[0]} (rank {env.rank} on {socket.gethostname()})",
        expected=f"all {env.world_size} ranks at {place} within {timeout_minutes:g} minutes",
        remedy="start every node with the same command and port; look for a node that did not start, a name that does "
        "not resolve, or a wrong NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME (tools/doctor.py)",
    )


def shut_down(*, exit_code: int | None = None) -> None:
    """Leaves torch.distributed in an orderly way; call it last, on every rank, after stopping child processes.

    1. Barrier, so that no rank tears down a connection that another still uses. 2. Destroy the process groups.
    3. Flush. 4. With ``exit_code``, end the process at once: Python's own clean-up is what gloo crashes in.
    A rank that failed must pass through here with a non-zero ``exit_code``; it skips 1, which the others would not
    reach, and 2, which may wait for a rank that is gone.
    """
    if dist.is_initialized() and not exit_code:
        dist.barrier()
        gc.collect()
        dist.destroy_process_group()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if exit_code is not None:
        os._exit(exit_code)


def _quieten() -> None:
    """Silences what DeepSpeed says of itself at every start and what a user can do nothing about."""
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    # What ZeRO-3 cannot look into is prepared for in initialize.py.
    logger.addFilter(_hides_unknown_outputs)
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", message=f".*{name}. is deprecated.*", category=FutureWarning)


def _hides_unknown_outputs(record: logging.LogRecord) -> bool:
    return "unknown inputs or outputs type" not in record.getMessage()


def _warn_of_stale_locks() -> None:
    for lock in extension_builds.locks(extension_builds.folder()):
        _log.warning("extension build lock %s: if start-up hangs and no build runs, remove it", lock)
