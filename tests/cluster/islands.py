"""Two islands of hosts joined by one link that can be slow and can be cut, as network namespaces of this machine.

::

    island A                 island B
    h1 h2 -- bridge == link == bridge -- h3 h4       one host per island: h1 == link == h2

Needs root with CAP_NET_ADMIN and CAP_SYS_ADMIN, and iproute2. A command that uses it first calls :func:`isolate`, which
starts the command again in namespaces of its own: what it makes and starts is invisible outside, and ends with it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_NEWUTS, _NEWNET = 0x04000000, 0x40000000
_NETNS = Path("/run/netns")
_INSIDE = "DISTMOE_TEST_ISLANDS"
_SIDES, _WAN = ("swA", "swB"), "wan"


def isolate(module: str) -> None:
    """Returns inside own network, mount and process namespaces; outside it never returns."""
    if os.environ.get(_INSIDE) == "1":
        _NETNS.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "tmpfs", str(_NETNS))
        _run("ip", "link", "set", "lo", "up")
        return
    missing = [name for name in ("unshare", "ip", "tc", "mount") if shutil.which(name) is None]
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if missing or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        reason = f"not installed: {', '.join(missing)}" if missing else "no right to make network namespaces (root)"
        sys.exit(f"skipped: {reason}; Debian's iproute2 and util-linux, root with CAP_NET_ADMIN and CAP_SYS_ADMIN")
    command = [*unshare, sys.executable, "-m", module, *sys.argv[1:]]
    sys.exit(subprocess.run(command, env=os.environ | {_INSIDE: "1"}).returncode)


@dataclass(frozen=True)
class Islands:
    """Made by :func:`build`; host ``i`` counts from 1 and has the address 10.77.0.i."""

    num_hosts: int

    def address(self, host: int) -> str:
        return f"10.77.0.{host}"

    def enter(self, host: int) -> None:
        """Moves the calling process, which must have one thread, to a host: its network and its name."""
        libc = ctypes.CDLL(None, use_errno=True)
        with (_NETNS / f"h{host}").open() as namespace:
            if libc.setns(namespace.fileno(), _NEWNET) or libc.unshare(_NEWUTS):
                raise OSError(ctypes.get_errno(), f"cannot enter h{host}")
        socket.sethostname(f"h{host}")

    def cut(self) -> None:
        """The link swallows everything from now on: no reset, no link-down."""
        _run("ip", "-n", "swA", "link", "set", _WAN, "nomaster")

    def heal(self) -> None:
        _run("ip", "-n", "swA", "link", "set", _WAN, "master", "br0")

    def bytes_over_link(self) -> int:
        """Sent so far by both sides, headers included."""
        shown = (
            _run("ip", "netns", "exec", side, "cat", f"/sys/class/net/{_WAN}/statistics/tx_bytes") for side in _SIDES
        )
        return sum(int(text) for text in shown)


def build(*, per_island: int, mbit: float | None = None, host_mbit: float | None = None) -> Islands:
    """Makes the hosts.

    Args:
        per_island: Hosts of each island.
        mbit: Rate of the link in each direction, Mbit/s; None: as fast as the kernel.
        host_mbit: Likewise of each host.
    """
    for side in _SIDES:
        _run("ip", "netns", "add", side)
        _run("ip", "-n", side, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", side, "link", "set", "br0", "up")
    _run("ip", "-n", "swA", "link", "add", _WAN, "type", "veth", "peer", "name", _WAN, "netns", "swB")
    for side in _SIDES:
        _run("ip", "-n", side, "link", "set", _WAN, "master", "br0", "up")
        _limit(side, _WAN, mbit)
    islands = Islands(2 * per_island)
    for host in range(1, islands.num_hosts + 1):
        side, name = _SIDES[(host - 1) // per_island], f"h{host}"
        _run("ip", "netns", "add", name)
        _run("ip", "-n", side, "link", "add", f"v{host}", "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "-n", side, "link", "set", f"v{host}", "master", "br0", "up")
        _run("ip", "-n", name, "addr", "add", f"{islands.address(host)}/24", "dev", "eth0")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", name, "link", "set", "eth0", "up")
        _limit(side, f"v{host}", host_mbit)
        _limit(name, "eth0", host_mbit)
    return islands


def _limit(namespace: str, device: str, mbit: float | None) -> None:
    if mbit is not None:
        shape = ("root", "tbf", "rate", f"{mbit}mbit", "burst", "64kb", "latency", "100ms")
        _run("tc", "-n", namespace, "qdisc", "add", "dev", device, *shape)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
