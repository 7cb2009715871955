"""Checks of one machine that need no other rank; none of them starts a process group."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from distmoe.doctor.finding import Finding
from distmoe.engine import extension_builds
from distmoe.parallel.cores import usable_cores
from distmoe.parallel.env import no_gpu_remedy, unused_gpus

PACKAGES = ("torch", "deepspeed", "transformers", "numpy")
GIB = 2**30
_FREE = 2 * GIB  # bytes: a small run's checkpoints, report and cache
_INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def versions() -> dict[str, str]:
    """What must be equal on all machines."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    found["cuda"] = torch.version.cuda or "none"
    found["nccl"] = ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else "none"
    return found


def check_versions(found: Mapping[str, str]) -> Finding:
    missing = [name for name, version in found.items() if version == "missing"]
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    if missing:
        return Finding("versions", "problem", text, f"install {', '.join(missing)} (make install)")
    return Finding("versions", "ok", text)


def check_devices(local_ranks: int, visible: int) -> Finding:
    """``visible`` GPUs for ``local_ranks`` ranks of this machine."""
    text = f"{visible} GPUs for {local_ranks} ranks"
    if visible == 0 and (given := unused_gpus(os.environ)):
        return Finding("devices", "problem", f"torch sees no GPU, Slurm gave {given}", no_gpu_remedy())
    if os.environ.get("DS_ACCELERATOR") == "cpu" or visible == 0:
        return Finding("devices", "ok", f"CPU, {usable_cores()} cores for {local_ranks} ranks")
    if visible < local_ranks:
        return Finding("devices", "problem", text, "start one rank per GPU; below Slurm ask for --gpus-per-node")
    if visible > local_ranks:
        return Finding("devices", "warning", text, "GPUs stay idle: start one rank per GPU")
    return Finding("devices", "ok", text)


def missing_interface(environ: Mapping[str, str], present: Sequence[str]) -> tuple[str, str] | None:
    """The first variable, with its value, that names an absent interface; ``^docker``, ``=ib0`` are NCCL's notation."""
    for variable in _INTERFACES:
        value = environ.get(variable, "")
        if not value or value.startswith("^"):
            continue
        for name in value.removeprefix("=").split(","):
            # NCCL takes a name as a prefix unless it is marked with "=".
            if not any(one == name or (variable.startswith("NCCL") and one.startswith(name)) for one in present):
                return variable, value
    return None


def check_interfaces(environ: Mapping[str, str], present: Sequence[str]) -> Finding:
    """Interfaces named in the environment exist."""
    missing = missing_interface(environ, present)
    if missing is not None:
        variable, value = missing
        return Finding(
            "interface", "problem", f"{variable}={value}, present: {', '.join(present)}",
            f"set {variable} to the interface that connects the nodes",
        )  # fmt: skip
    return Finding("interface", "ok", ", ".join(present))


def check_name(host: str, address: str | None, *, several_nodes: bool, environ: Mapping[str, str]) -> Finding:
    """A host name that stands for a loopback address makes other nodes connect to themselves."""
    if address is None:
        return Finding(
            "host name",
            "problem" if several_nodes else "warning",
            f"{host} does not resolve",
            "repair /etc/hosts or DNS",
        )
    named = any(environ.get(variable) for variable in _INTERFACES)
    if several_nodes and address.startswith("127.") and not named:
        return Finding(
            "host name", "warning", f"{host} is {address}, a loopback address",
            "set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to the interface that connects the nodes",
        )  # fmt: skip
    return Finding("host name", "ok", f"{host} is {address}")


def check_folder(folder: Path, *, needed: float) -> Finding:
    """Whether a run can write there; ``needed`` bytes should be free."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as failure:
        return Finding(
            "folder", "problem", f"{folder}: {failure.strerror}", "set run.output_dir to a folder you may write"
        )
    free = shutil.disk_usage(folder).free
    text = f"{folder}: {free / GIB:.1f} GiB free"
    if free < needed:
        return Finding(
            "folder", "problem", f"{text}, {needed / GIB:.1f} GiB needed", "free space, or lower checkpoint.keep_last"
        )
    return Finding("folder", "ok", text)


def check_locks(folder: Path) -> Finding:
    locks = extension_builds.locks(folder)
    if locks:
        return Finding(
            "extension builds", "warning", f"lock {locks[0]}", "remove it if no build runs: it hangs every start"
        )
    return Finding("extension builds", "ok", f"no lock below {folder}")


def check_machine(*, local_ranks: int, several_nodes: bool, folder: Path) -> list[Finding]:
    """All of them, on this machine; ``folder`` is where a run would write."""
    host = socket.gethostname()
    try:
        address: str | None = socket.gethostbyname(host)
    except OSError:
        address = None
    return [
        check_versions(versions()),
        check_devices(local_ranks, torch.cuda.device_count()),
        check_interfaces(os.environ, [name for _, name in socket.if_nameindex()]),
        check_name(host, address, several_nodes=several_nodes, environ=os.environ),
        check_folder(folder, needed=_FREE),
        check_locks(extension_builds.folder()),
    ]
