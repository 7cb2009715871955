"""Checks that need all ranks: equal software, one clock, a shared folder, and links that carry what they should."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from distmoe.doctor.finding import Finding
from distmoe.doctor.machine import versions
from distmoe.parallel.all_to_all import all_to_all
from distmoe.parallel.shared_folder import blind_ranks

CLOCK_LIMIT = 2.0  # seconds; logs of different nodes are compared by time, and file times decide about caches


@dataclass(frozen=True)
class Presence:
    """What a rank says of itself."""

    host: str
    versions: Mapping[str, str]
    clock: float
    sees_token: bool


def check_ranks(folder: Path) -> list[Finding]:
    """Gathers every rank's :class:`Presence`; collective, equal on all ranks.

    1. who sees a file of rank 0;  2. barrier;  3. all read their clocks;  4. gather.
    """
    blind = blind_ranks(folder)
    dist.barrier()
    own = Presence(socket.gethostname(), versions(), time.time(), dist.get_rank() not in blind)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return compare(everyone, folder)


def compare(ranks: Sequence[Presence], folder: Path) -> list[Finding]:
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
    blind = [number for number, rank in enumerate(ranks) if not rank.sees_token]
    if blind:
        text = f"{folder} of rank 0 is not seen by ranks {blind} ({ranks[blind[0]].host})"
        findings.append(
            Finding("shared folder", "problem", text, "set run.output_dir and data.cache_dir to a shared folder")
        )
    else:
        findings.append(Finding("shared folder", "ok", str(folder)))
    return findings


def measure(
    name: str, process_group: ProcessGroup | None, device: torch.device, *, seconds: float, megabytes: float = 4.0
) -> list[Finding]:
    """All-reduce and all-to-all of one process group; collective over it. Values are checked, not only timed.

    The first round decides how many follow, by the slowest rank's clock, so that all ranks make equally many.
    """
    size = dist.get_world_size(process_group)
    rows = max(size, int(megabytes * 1e6 / 4 / 256) // size * size)
    data = torch.full((rows, 256), float(dist.get_rank(process_group)), device=device)
    splits = (rows // size,) * size
    group = dist.group.WORLD if process_group is None else process_group

    def reduce() -> None:
        total = data.clone()
        dist.all_reduce(total, group=process_group)
        assert total[0, 0].item() == size * (size - 1) / 2, "all_reduce gave a wrong sum"

    def exchange() -> None:
        received = all_to_all(data, send_counts=splits, receive_counts=splits, process_group=group)
        assert received[:: splits[0], 0].tolist() == list(range(size)), "all_to_all gave wrong rows"

    findings = []
    sent = data.nbytes * (size - 1) / size
    for kind, action, num_bytes in (("all-reduce", reduce, 2 * sent), ("all-to-all", exchange, sent)):
        took = torch.tensor(_timed(action, 1), device=device)
        dist.all_reduce(took, op=dist.ReduceOp.MAX, group=process_group)
        rounds = max(1, int(seconds / 2 / max(took.item(), 1e-6)))
        rate = num_bytes * rounds / _timed(action, rounds)
        findings.append(
            Finding(f"{kind}, {name}", "ok", f"{size} ranks, {rate / 1e9:.2f} GB/s per rank, {rounds} rounds")
        )
    return findings


def _timed(action: Any, rounds: int) -> float:
    began = time.perf_counter()
    for _ in range(rounds):
        action()
    return time.perf_counter() - began
