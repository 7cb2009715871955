"""What can be learned of other machines before anything is started there: one short ssh to each, side by side."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from distmoe.doctor.machine import missing_interface
from distmoe.errors import ParallelError
from distmoe.launch.places import Hosts

LIMIT = 10.0  # seconds for one host


@dataclass(frozen=True)
class Seen:
    """What a host said.

    Attributes:
        reached: Whether it said anything.
        why: If not, why.
        interfaces: Names of its network interfaces.
        shares: Whether it sees the folder of the run.
        has_python: Whether this interpreter exists there.
    """

    reached: bool
    why: str = ""
    interfaces: tuple[str, ...] = ()
    shares: bool = False
    has_python: bool = False


def look(place: Hosts, folder: Path) -> dict[str, Seen]:
    """Asks every host; a file in ``folder`` shows which of them see it."""
    folder.mkdir(parents=True, exist_ok=True)
    token = folder.resolve() / f".seen-{os.getpid()}-{time.time_ns()}"
    token.touch()
    question = (
        f"ls /sys/class/net | tr '\\n' ' '; echo; test -e {shlex.quote(str(token))} && echo shared; "
        f"test -x {shlex.quote(sys.executable)} && echo python; true"
    )
    try:
        with ThreadPoolExecutor(max_workers=32) as pool:
            answers = pool.map(lambda host: _ask(host, place.ssh_port, question), place.slots)
            return dict(zip(place.slots, answers, strict=True))
    finally:
        token.unlink()


def refuse_unfit(place: Hosts, seen: Mapping[str, Seen], folder: Path, environ: Mapping[str, str]) -> None:
    """Raises for the first thing that a host lacks.

    Raises:
        ParallelError: If a host cannot be reached, lacks an interface or the interpreter, or does not see the folder.
    """
    away = {host: one.why for host, one in seen.items() if not one.reached}
    if away:
        raise ParallelError(
            f"{_hosts(list(away))} of the hostfile cannot be reached by ssh without a password",
            got="; ".join(f"{host}: {why}" for host, why in list(away.items())[:4]),
            expected=f"an answer of every host within {LIMIT:.0f} s",
            remedy="repair the host, its name or its ssh key, take it out of the hostfile, restart with --fewer, or "
            "start this command on every host with --no_ssh",
        )
    for host, one in seen.items():
        missing = missing_interface(environ, one.interfaces)
        if missing is not None:
            variable, value = missing
            raise ParallelError(
                f"{host} lacks the network interface of {variable}",
                got=f"{variable}={value}; {host} has {' '.join(one.interfaces)}",
                expected="an interface that all hosts have and that connects them",
                remedy=f"set {variable} to it (ip -br addr)",
            )
    blind = [host for host, one in seen.items() if not one.shares]
    if blind:
        raise ParallelError(
            "the folder of the run is not shared by all hosts",
            got=f"{folder.resolve()} here is not seen by {_hosts(blind)}",
            expected="a folder that every host sees: all ranks write a checkpoint together",
            remedy="set run.output_dir (and data.cache_dir) to a folder on a shared file system",
        )
    without = [host for host, one in seen.items() if not one.has_python]
    if without:
        raise ParallelError(
            "the Python of this command is missing on other hosts",
            got=f"{sys.executable} does not exist on {_hosts(without)}",
            expected="the same environment at the same path on all hosts",
            remedy="install it there, or keep it on a shared file system",
        )


def refuse_unknown_name(name: str) -> None:
    """Raises for a name that does not resolve within the limit.

    Raises:
        ParallelError: Naming it.
    """
    found: list[str] = []
    # The library's own time-outs add up to minutes, and a pool would wait for its thread; this one is left behind.
    asking = threading.Thread(target=lambda: found.append(_resolves(name)), daemon=True)
    asking.start()
    asking.join(LIMIT)
    reason = found[0] if found else f"no answer of the name service within {LIMIT:.0f} s"
    if reason:
        raise ParallelError(
            "the address where the ranks meet does not resolve",
            got=f"{name}: {reason}",
            expected="a name or address that all hosts know",
            remedy="correct --master_addr or the first line of the hostfile, or repair /etc/hosts or DNS",
        )


def _resolves(name: str) -> str:
    try:
        socket.getaddrinfo(name, None)
    except OSError as failure:
        return str(failure)
    return ""


def _ask(host: str, port: int | None, question: str) -> Seen:
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={LIMIT / 2:.0f}", *(["-p", str(port)] if port else [])]
    try:
        done = subprocess.run(
            ["ssh", *options, host, question], text=True, capture_output=True, timeout=LIMIT, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        return Seen(False, "ssh is not installed here")
    except subprocess.TimeoutExpired:
        return Seen(False, f"no answer within {LIMIT:.0f} s")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return Seen(False, lines[-1] if lines else f"ssh ended with code {done.returncode}")
    interfaces, *words = done.stdout.splitlines() or [""]
    return Seen(True, "", tuple(interfaces.split()), "shared" in words, "python" in words)


def _hosts(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
