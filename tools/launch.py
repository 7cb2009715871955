#!/usr/bin/env python3
"""Starts a run: checks first, prints the exact command, runs it, and starts it again from the last checkpoint.

python tools/launch.py local --ranks 8 --recipe glue model.pretrained=HF_DIR
python tools/launch.py hosts --hostfile hostfile --recipe glue model.pretrained=HF_DIR   # ssh; see docs/cluster.md
python tools/launch.py hosts --hostfile hostfile --no_ssh --node_rank 0 --recipe glue ...   # once per machine
python tools/launch.py slurm --nodes 4 --gpus_per_node 8 --sbatch "--time=1-0" --recipe glue model.pretrained=HF_DIR

Arguments that are not its own are those of distmoe/train.py. Exit code: 0 finished, 2 refused, 1 given up,
128 + n stopped in order by signal n.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distmoe.errors import ConfigError, DistmoeError
from distmoe.launch import checks, command
from distmoe.launch.command import ROOT, Command
from distmoe.launch.places import Hosts, Local, Place, Slurm, read_hostfile, slurm_place
from distmoe.launch.supervise import Policy, Supervisor, to_stderr
from distmoe.recipes.loader import DEFAULT_RECIPE, resolve
from distmoe.train import USER_ERROR
from distmoe.train import parser as train_parser
from distmoe.training.run_folder import run_path

_PORT = 29500  # of runs that several commands start: they cannot agree on a free one


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        usage="launch.py [options] local|hosts|slurm [arguments of train.py: --recipe R section.key=value ...]",
        description="Check, print, run and restart a training.", allow_abbrev=False,
        epilog="Everything else goes to distmoe/train.py.",
    )  # fmt: skip
    result.add_argument("place", choices=("local", "hosts", "slurm"))
    result.add_argument("--ranks", type=int, default=1, help="local: processes, one per GPU (default: 1)")
    result.add_argument(
        "--hostfile", type=Path, default=Path("hostfile"),
        help="hosts: file with lines of NAME slots=RANKS (default: hostfile)",
    )  # fmt: skip
    result.add_argument("--master_addr", help="hosts: address where the ranks meet; default the first host's name")
    result.add_argument("--no_ssh", action="store_true", help="hosts: this command is started on every host")
    result.add_argument("--node_rank", type=int, default=0, help="with --no_ssh: line of this host, from 0")
    result.add_argument("--ssh_port", type=int, help="hosts: default that of ssh")
    result.add_argument("--nodes", type=int, default=1, help="slurm: machines (default: 1)")
    result.add_argument("--gpus_per_node", type=int, default=8, help="slurm: also the ranks of a node (default: 8)")
    result.add_argument("--sbatch", default="", metavar="OPTIONS", help="slurm: further options, in one string")
    result.add_argument("--master_port", type=int, help="default: a free one; with --no_ssh 29500")
    result.add_argument(
        "--restarts", type=int, default=3,
        help="failures in a row without a new checkpoint that are tried again (default: 3)",
    )  # fmt: skip
    result.add_argument(
        "--pause", type=float, default=10.0, help="seconds before a restart, doubled each time (default: 10)"
    )
    result.add_argument("--fewer", action="store_true", help="hosts: restart on those that still answer")
    result.add_argument("--doctor", action="store_true", help="let the ranks measure the links first (tools/doctor.py)")
    result.add_argument("--dry_run", action="store_true", help="check and print only")
    return result


def main(argv: list[str] | None = None) -> int:
    arguments, rest = parser().parse_known_args(argv)
    try:
        return run(arguments, rest)
    except DistmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    training = train_parser().parse_intermixed_args(rest)
    overrides = list(training.overrides)
    if training.deepspeed_config is not None:
        overrides.append(f"parallel.deepspeed={training.deepspeed_config}")
    config = resolve(training.recipe or DEFAULT_RECIPE, overrides)
    place = place_of(arguments)
    checks.check_run(config, place, resume=training.resume)
    files = run_path(config).with_name(f"{run_path(config).name}.launch")
    port = arguments.master_port or (_PORT if arguments.no_ssh else free_port())
    if isinstance(place, Slurm):
        test = command.build(place, rest, folder=files, port=port, test_only=True)
        checks.check_place(config, place, examine=test)
        return submit(command.build(place, rest, folder=files, port=port), dry_run=arguments.dry_run)
    checks.check_place(config, place)
    if arguments.dry_run:
        print(command.build(place, rest, folder=files, port=port))
        return 0
    if arguments.doctor:
        code = examine(place, rest, files, port)
        if code:
            return code

    # Restarts have the same arguments: by this name a run knows its folder again, whatever --resume says.
    os.environ["DISTMOE_LAUNCH"] = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"

    def next_command(is_restart: bool) -> Command:
        if not is_restart:
            return command.build(place, rest, folder=files, port=port)
        now = place
        if arguments.fewer and isinstance(place, Hosts) and place.node_rank is None:
            now = checks.reachable(place, config)
        # A port that the last start used may not be free again yet.
        again = port if arguments.no_ssh or arguments.master_port else free_port()
        return command.build(now, rest, folder=files, port=again)

    policy = Policy(arguments.restarts, arguments.pause)
    return Supervisor(run_path(config), policy, say=to_stderr).supervise(next_command)


def place_of(arguments: argparse.Namespace) -> Place:
    """Where to run, from the command line."""
    if arguments.place == "slurm":
        if arguments.doctor:
            raise ConfigError(
                "below Slurm the doctor is a job of its own",
                got="slurm --doctor",
                expected="--doctor with local or hosts",
                remedy=f"sbatch --nodes={arguments.nodes} --ntasks-per-node={arguments.gpus_per_node} "
                f"--gpus-per-node={arguments.gpus_per_node} slurm/doctor.sbatch, with the arguments of the run",
            )
        return slurm_place(
            arguments.nodes, arguments.gpus_per_node, arguments.sbatch, arguments.restarts, arguments.pause
        )
    if arguments.place == "local":
        if arguments.ranks < 1:
            raise ConfigError(
                "a run has at least one rank",
                got=f"--ranks {arguments.ranks}",
                expected="1 or more",
                remedy="correct --ranks",
            )
        return Local(arguments.ranks)
    slots = read_hostfile(arguments.hostfile)
    master = arguments.master_addr or next(iter(slots))
    return Hosts(slots, master, arguments.node_rank if arguments.no_ssh else None, arguments.ssh_port)


def examine(place: Place, rest: list[str], files: Path, port: int) -> int:
    """Lets the ranks of the place measure each other."""
    found = command.build(place, rest, folder=files, port=port, script=ROOT / "tools" / "doctor.py")
    to_stderr(str(found))
    return subprocess.run(found.words, env=os.environ | dict(found.variables)).returncode


def submit(found: Command, *, dry_run: bool) -> int:
    """Hands the job to Slurm, which runs, requeues and resumes it."""
    if dry_run:
        print(found)
        return 0
    to_stderr(str(found))
    return subprocess.run(found.words).returncode


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
