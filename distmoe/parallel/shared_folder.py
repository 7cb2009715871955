"""Whether all ranks see one folder: a checkpoint is written by all of them, and a cache is made by one for all."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import torch.distributed as dist

from distmoe.errors import ParallelError

_PATIENCE = 5.0  # seconds: a network file system may show a new file late


def blind_ranks(folder: Path) -> dict[int, str]:
    """Ranks, with their hosts, that do not see a file which rank 0 has just written there. Collective.

    1. rank 0 writes a token and tells its name, or why not;  2. all look for it;  3. gather;  4. rank 0 removes it.

    Raises:
        ParallelError: On all ranks, if rank 0 cannot write there.
    """
    token, failure = f".seen-{os.getpid()}-{time.time_ns()}", ""
    if dist.get_rank() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / token).touch()
        except OSError as error:
            failure = f"{type(error).__name__}: {error}"
    box: list[str] = [token, failure]
    dist.broadcast_object_list(box, src=0)
    token, failure = box
    if failure:
        raise ParallelError(
            "rank 0 cannot write into the folder of the run",
            got=failure,
            expected=f"{folder.resolve()}, writable and with room",
            remedy="set run.output_dir to a folder you may write",
        )
    end = time.monotonic() + _PATIENCE
    while not (seen := (folder / token).is_file()) and time.monotonic() < end:
        time.sleep(0.2)
    everyone: list[tuple[bool, str]] = [(False, "")] * dist.get_world_size()
    dist.all_gather_object(everyone, (seen, socket.gethostname()))
    if dist.get_rank() == 0:
        (folder / token).unlink()
    return {rank: host for rank, (sees, host) in enumerate(everyone) if not sees}


def require_shared(folder: Path) -> None:
    """Refuses a folder that some rank does not see. Collective.

    Raises:
        ParallelError: On all ranks.
    """
    blind = blind_ranks(folder)
    if blind:
        hosts = ", ".join(dict.fromkeys(blind.values()))
        raise ParallelError(
            "the folder of the run is not shared by all nodes",
            got=f"{folder} of rank 0 is not seen by ranks {' '.join(map(str, blind))} ({hosts})",
            expected="a folder that every node sees: all ranks write a checkpoint together",
            remedy="set run.output_dir (and data.cache_dir) to a folder on a shared file system",
        )
