"""Where a run can be started: here, on the hosts of a file, below Slurm."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distmoe.errors import ConfigError, ParallelError

_LINE = re.compile(r"(\S+)\s+slots\s*=\s*(\d+)")


@dataclass(frozen=True)
class Local:
    """Ranks on this machine."""

    num_ranks: int

    @property
    def ranks_here(self) -> int:
        return self.num_ranks

    @property
    def num_nodes(self) -> int:
        return 1


@dataclass(frozen=True)
class Hosts:
    """Ranks on several machines, started through ssh (pdsh), or by this command on each of them.

    Attributes:
        slots: Ranks per host, in order of node rank.
        master: Address of the first host, as the others reach it.
        node_rank: Which host this is; None: pdsh starts all from here.
        ssh_port: None: ssh's own.
    """

    slots: Mapping[str, int]
    master: str
    node_rank: int | None = None
    ssh_port: int | None = None

    def __post_init__(self) -> None:
        """Refuses a node rank that no line of the hostfile has.

        Raises:
            ConfigError: Naming it.
        """
        if self.node_rank is not None and not 0 <= self.node_rank < len(self.slots):
            raise ConfigError(
                "--node_rank is not a line of the hostfile",
                got=f"--node_rank {self.node_rank}",
                expected=f"0 to {len(self.slots) - 1}",
                remedy="number the hosts in the order of the hostfile",
            )

    @property
    def num_ranks(self) -> int:
        return sum(self.slots.values())

    @property
    def ranks_here(self) -> int:
        return list(self.slots.values())[self.node_rank or 0]

    @property
    def num_nodes(self) -> int:
        return len(self.slots)


@dataclass(frozen=True)
class Slurm:
    """A job of equal nodes, one rank per GPU.

    Attributes:
        nodes: How many.
        per_node: Ranks, and GPUs, of each.
        options: Further options of sbatch.
        restarts: How often a job that failed is queued again.
        pause: Whole seconds before the first time; the batch script doubles them.
    """

    nodes: int
    per_node: int
    options: tuple[str, ...] = ()
    restarts: int = 0
    pause: int = 10

    @property
    def num_ranks(self) -> int:
        return self.nodes * self.per_node

    @property
    def num_nodes(self) -> int:
        return self.nodes

    def geometry(self) -> list[str]:
        """What sbatch is told of nodes and ranks; ``--ntasks-per-node`` always: ``-N 2 -n 4`` may place 3 + 1."""
        return [f"--nodes={self.nodes}", f"--ntasks-per-node={self.per_node}", f"--gpus-per-node={self.per_node}"]


Place = Local | Hosts | Slurm


def read_hostfile(path: Path) -> dict[str, int]:
    """Ranks per host, from lines such as ``node1 slots=8``; ``#`` begins a comment.

    Raises:
        ConfigError: If the file is missing or empty, or a line is of another form or repeats a host.
    """
    if not path.is_file():
        raise ConfigError(
            "the hostfile does not exist",
            got=str(path),
            expected="a file with a line per machine: node1 slots=8",
            remedy="correct --hostfile",
        )
    slots: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.split("#")[0].strip()
        found = _LINE.fullmatch(text)
        if text and (found is None or found[1] in slots or int(found[2]) < 1):
            raise ConfigError(
                f"line {number} of {path} is not a host of its own",
                got=line.strip(),
                expected="NAME slots=RANKS, each name once, at least one slot",
                remedy="correct the hostfile",
            )
        if found is not None:
            slots[found[1]] = int(found[2])
    if not slots:
        raise ConfigError(
            "the hostfile names no host",
            got=str(path),
            expected="a line per machine: node1 slots=8",
            remedy="write one, or start on this machine alone: tools/launch.py local",
        )
    return slots


def slurm_place(nodes: int, per_node: int, options: str, restarts: int, pause: float = 10.0) -> Slurm:
    """A job whose further options do not contradict its nodes, its ranks and what it is told of restarts.

    Raises:
        ParallelError: If they do.
    """
    place = Slurm(nodes, per_node, tuple(shlex.split(options)), restarts, math.ceil(pause))
    wanted = {
        "--nodes": nodes, "-N": nodes, "--ntasks": place.num_ranks, "-n": place.num_ranks,
        "--ntasks-per-node": per_node, "--gpus-per-node": per_node, "--gpus": place.num_ranks, "-G": place.num_ranks,
    }  # fmt: skip
    remedy = "leave it out: --nodes and --gpus_per_node of tools/launch.py say all"
    if nodes < 1 or per_node < 1:
        raise ParallelError(
            "a job has at least one node with one rank",
            got=f"--nodes {nodes} --gpus_per_node {per_node}",
            expected="positive numbers",
            remedy="correct them",
        )
    for name, value in _options(place.options):
        if name in ("--gpus-per-task", "--ntasks-per-gpu"):
            raise ParallelError(
                f"{name} contradicts one rank per GPU of a node",
                got=f"{name}={value}",
                expected=f"{' '.join(place.geometry())}: each rank sees all GPUs of its node and takes its own",
                remedy=remedy,
            )
        if name == "--export" and restarts:
            raise ParallelError(
                "--export would keep from the job how often it may be queued again",
                got=f"--export={value} with --restarts {restarts}",
                expected="no --export: the job gets all variables of this shell",
                remedy="set the variables in this shell and leave --export out; or give --restarts 0",
            )
        if name in wanted and value.split(":")[-1] != str(wanted[name]):
            raise ParallelError(
                f"{name} contradicts the geometry of the job",
                got=f"{name}={value} with {nodes} nodes of {per_node} ranks",
                expected=f"{name}={wanted[name]}",
                remedy=remedy,
            )
    return place


def _options(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """``--name=value``, ``--name value`` and ``-N4`` as pairs."""
    pairs = []
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else ""
        if word.startswith("--"):
            name, sign, value = word.partition("=")
            pairs.append((name, value if sign else following))
        elif word.startswith("-"):
            pairs.append((word[:2], word[2:].lstrip("=") or following))
    return pairs
