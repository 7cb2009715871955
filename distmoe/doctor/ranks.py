"""Checks that need all ranks: equal software, one clock, a shared folder, and links that carry what they should."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from distmoe.doctor.finding import Finding
from distmoe.doctor.machine import versions
from distmoe.errors import ParallelError
from distmoe.parallel.all_to_all import all_to_all
from distmoe.parallel.rank_grid import RankGrid
from distmoe.parallel.shared_folder import blind_ranks

_SUSPECTS = "look at the network, the devices and the versions of NCCL there; NCCL_DEBUG=INFO says what they use"
CLOCK_LIMIT = 2.0  # seconds; logs of different nodes are compared by time, and file times decide about caches


@dataclass(frozen=True)
class Presence:
    """What a rank says of itself."""

    host: str
    versions: Mapping[str, str]
    clock: float


def check_ranks(folder: Path) -> list[Finding]:
    """Gathers every rank's :class:`Presence`; collective, equal on all ranks.

    1. who sees a file of rank 0, if it can write one;  2. barrier;  3. all read their clocks;  4. gather.
    """
    try:
        seen = _seen(blind_ranks(folder), folder)
    except ParallelError as error:
        seen = Finding("shared folder", "problem", f"{error.what}: {error.got}", error.remedy)
    dist.barrier()
    own = Presence(socket.gethostname(), versions(), time.time())
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return [*compare(everyone), seen]


def compare(ranks: Sequence[Presence]) -> list[Finding]:
    """Pure: what differs between ranks."""
    findings = []
    hosts = list(dict.fromkeys(rank.host for rank in ranks))
    for name, expected in ranks[0].versions.items():
        for number, rank in enumerate(ranks):
            if rank.versions[name] != expected:
                text = (
                    f"{name} is {expected} on {ranks[0].host} and {rank.versions[name]} on {rank.host} (rank {number})"
                )
                findings.append(Finding("equal software", "problem", text, f"install the same {name} on all nodes"))
                break
    if not findings:
        findings.append(Finding("equal software", "ok", f"{len(ranks)} ranks on {len(hosts)} hosts"))
    spread = max(rank.clock for rank in ranks) - min(rank.clock for rank in ranks)
    verdict = "ok" if spread < CLOCK_LIMIT else "warning"
    remedy = "" if verdict == "ok" else "let the nodes' clocks be set by NTP"
    findings.append(Finding("clocks", verdict, f"{spread:.2f} s apart", remedy))  # type: ignore[arg-type]
    return findings


def _seen(blind: Mapping[int, str], folder: Path) -> Finding:
    if blind:
        text = f"{folder} of rank 0 is not seen by ranks {list(blind)} ({next(iter(blind.values()))})"
        return Finding("shared folder", "problem", text, "set run.output_dir and data.cache_dir to a shared folder")
    return Finding("shared folder", "ok", str(folder))


def block_members(num_ranks: int, *, tensor: int, ep_size: int) -> list[tuple[int, ...]]:
    """Ranks of the run in each block: ``ep_size`` data ranks, once per tensor rank. None if blocks do not fit.

    Raises:
        ParallelError: If tensor ranks do not fit.
    """
    num_data_ranks = RankGrid(0, num_ranks, tensor).num_data_ranks
    if num_data_ranks % ep_size:
        return []
    return [
        RankGrid(tensor_rank, num_ranks, tensor).world_ranks(range(first, first + ep_size))
        for first in range(0, num_data_ranks, ep_size)
        for tensor_rank in range(tensor)
    ]


def measure(
    name: str, process_group: ProcessGroup | None, device: torch.device, *, seconds: float, megabytes: float = 4.0
) -> list[Finding]:
    """All-reduce and all-to-all of one process group; collective over it. Values are checked, not only timed.

    A wrong value is a problem of the rank that got it; all ranks go on, so that none waits for another. The first round
    decides how many follow, by the slowest rank's clock, so that all ranks make equally many.
    """
    size = dist.get_world_size(process_group)
    rows = max(size, int(megabytes * 1e6 / 4 / 256) // size * size)
    data = torch.full((rows, 256), float(dist.get_rank(process_group)), device=device)
    splits = (rows // size,) * size
    group = dist.group.WORLD if process_group is None else process_group

    def reduce() -> bool:
        total = data.clone()
        dist.all_reduce(total, group=process_group)
        return total[0, 0].item() == size * (size - 1) / 2

    def exchange() -> bool:
        received = all_to_all(data, send_counts=splits, receive_counts=splits, process_group=group)
        return received[:: splits[0], 0].tolist() == list(range(size))

    findings = []
    sent = data.nbytes * (size - 1) / size
    for kind, action, num_bytes in (("all-reduce", reduce, 2 * sent), ("all-to-all", exchange, sent)):
        first, first_wrong = _timed(action, 1)
        took = torch.tensor(first, device=device)
        dist.all_reduce(took, op=dist.ReduceOp.MAX, group=process_group)
        rounds = max(1, int(seconds / 2 / max(took.item(), 1e-6)))
        lasted, wrong = _timed(action, rounds)
        text = f"{size} ranks, {num_bytes * rounds / lasted / 1e9:.2f} GB/s per rank, {rounds} rounds"
        if first_wrong + wrong:
            text = f"wrong values in {first_wrong + wrong} of {rounds + 1} rounds on {socket.gethostname()}"
            findings.append(Finding(f"{kind}, {name}", "problem", text, _SUSPECTS))
        else:
            findings.append(Finding(f"{kind}, {name}", "ok", text))
    return findings


def _timed(action: Callable[[], bool], rounds: int) -> tuple[float, int]:
    """Seconds that the rounds took, and how many of them gave wrong values."""
    began = time.perf_counter()
    wrong = sum(not action() for _ in range(rounds))
    return time.perf_counter() - began, wrong
