"""Everything that would make a start fail and can be seen from here, in order of cost; no rank is started."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from distmoe.checkpoint import folders
from distmoe.doctor.machine import check_machine
from distmoe.errors import ConfigError, DistmoeError, ParallelError
from distmoe.launch import hosts
from distmoe.launch.command import Command
from distmoe.launch.places import Hosts, Place, Slurm
from distmoe.parallel.env import RankEnv
from distmoe.training.config import RunConfig
from distmoe.training.contradictions import check_environment
from distmoe.training.plan import make_plan
from distmoe.training.run_folder import open_run


def check_run(config: RunConfig, place: Place, *, resume: str) -> None:
    """Refuses a run that does not fit its ranks, or has nothing to resume from.

    Raises:
        DistmoeError: Naming keys or options.
    """
    # A login node has no GPU, the job's nodes have: "auto" and all that hangs on it must be what the job will see.
    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu"
    elsewhere = ("cpu" if on_cpu else "cuda") if isinstance(place, Slurm) else None
    per_node = place.per_node if isinstance(place, Slurm) else place.ranks_here
    check_environment(config, num_ranks=place.num_ranks)
    open_run(config, resume=resume, latest=folders.latest)
    make_plan(config, RankEnv(0, place.num_ranks, 0, per_node), device_type=elsewhere)


def check_place(config: RunConfig, place: Place, *, examine: Command | None = None) -> None:
    """Refuses machines that are not fit.

    Args:
        config: The run, for the folders that it writes.
        place: Where.
        examine: For Slurm: the command with ``--test-only``.

    Raises:
        DistmoeError: Naming machine and remedy.
    """
    folder = Path(config.run.output_dir)
    if isinstance(place, Slurm):
        _ask_slurm(examine)
        return
    for finding in check_machine(local_ranks=place.ranks_here, several_nodes=place.num_nodes > 1, folder=folder):
        if finding.verdict == "problem":
            raise ParallelError(
                f"this machine is not fit for the run: {finding.name}",
                got=finding.detail,
                expected="no problem that tools/doctor.py finds",
                remedy=finding.remedy,
            )
    if isinstance(place, Hosts):
        _check_hosts(place, folder)


def reachable(place: Hosts, config: RunConfig) -> Hosts:
    """The place without the hosts that do not answer, and small enough that the run fits its ranks.

    Raises:
        ParallelError: If nothing of it is left that the run fits.
    """
    seen = hosts.look(place, Path(config.run.output_dir))
    alive = [host for host, one in seen.items() if one.reached]
    for count in range(len(alive), 0, -1):
        slots = {host: place.slots[host] for host in alive[:count]}
        # The address is the first host's, under whatever name; a host takes its place under its own.
        master = place.master if alive[0] == next(iter(place.slots)) else alive[0]
        smaller = Hosts(slots, master, None, place.ssh_port)
        try:
            check_environment(config, num_ranks=smaller.num_ranks)
        except DistmoeError:
            continue
        return smaller
    raise ParallelError(
        "no smaller set of hosts fits the run",
        got=f"{len(alive)} of {len(place.slots)} hosts answer: {' '.join(alive) or 'none'}",
        expected="a multiple of parallel.tensor; the ranks divided by it divide data.batch_size and are a multiple of "
        "parallel.ep_size",
        remedy="repair the hosts, or change data.batch_size, parallel.ep_size or parallel.tensor",
    )


def _check_hosts(place: Hosts, folder: Path) -> None:
    if place.node_rank is not None:
        hosts.refuse_unknown_name(place.master)
        return
    if shutil.which("pdsh") is None:
        raise ConfigError(
            "DeepSpeed starts other hosts with pdsh, which is not installed",
            got="no pdsh on PATH",
            expected="pdsh here, and ssh without a password to all hosts",
            remedy="install pdsh, or start this command on every host with --no_ssh --node_rank N",
        )
    hosts.refuse_unfit(place, hosts.look(place, folder), folder, os.environ)
    hosts.refuse_unknown_name(place.master)


def _ask_slurm(test: Command | None) -> None:
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "sbatch is not installed here",
            got="no sbatch on PATH",
            expected="a login node of a Slurm cluster",
            remedy="start it there, or use tools/launch.py local or hosts",
        )
    if test is None:
        return
    done = subprocess.run(test.words, text=True, capture_output=True, timeout=30)
    if done.returncode:
        unreachable = "contact" in done.stderr or "configuration source" in done.stderr
        raise ParallelError(
            "Slurm would not accept the job",
            got=" ".join(done.stderr.split()) or f"code {done.returncode}",
            expected=f"that it accepts {test}",
            remedy="call it where Slurm's controller can be reached: on a login node of the cluster"
            if unreachable
            else "change --nodes, --gpus_per_node or --sbatch; see sinfo for what the cluster has",
        )
