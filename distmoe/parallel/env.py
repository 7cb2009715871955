"""Who this process is among the ranks, from whichever launcher started it.

==========================  =====================================================================================
started by                  what is read
==========================  =====================================================================================
``deepspeed``, ``torchrun`` RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE or LOCAL_SIZE, MASTER_ADDR, MASTER_PORT
``srun``                    SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID, SLURM_NTASKS_PER_NODE; the batch script exports
                            MASTER_ADDR and MASTER_PORT (DeepSpeed would look for mpi4py instead)
``python``                  nothing: rank 0 of 1, with a free port
==========================  =====================================================================================
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

import torch

from distmoe.errors import ParallelError, RankError
from distmoe.parallel.cores import usable_cores

_SLURM = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_NTASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
    "LOCAL_WORLD_SIZE": "SLURM_NTASKS_PER_NODE",
}
_MASTER = ("MASTER_ADDR", "MASTER_PORT")
_SRUN = (
    "start with `srun --ntasks-per-node=N python distmoe/train.py` in a job that exports MASTER_ADDR and MASTER_PORT"
)
_SLURM_GPUS = ("SLURM_GPUS_ON_NODE", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS")  # a number; lists of their indices
_LAUNCH = "start with `deepspeed distmoe/train.py`, or unset RANK to run as a single process"


@dataclass(frozen=True)
class RankEnv:
    """Position of this process.

    Attributes:
        rank: In the whole run.
        world_size: Ranks of the whole run.
        local_rank: On this node; the index of its device.
        local_world_size: Ranks on this node.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def read_env(environ: MutableMapping[str, str] | None = None) -> RankEnv:
    """Returns the position of this process, and completes the variables that torch and DeepSpeed read.

    Call it before ``init_distributed``. Variables that a launcher set keep their values.

    Args:
        environ: Variables to read and to complete; default ``os.environ``.

    Raises:
        ParallelError: If the launcher's variables are incomplete or contradict each other.
    """
    environ = os.environ if environ is None else environ
    if "RANK" in environ:
        _accept_launcher(environ)
    elif "SLURM_PROCID" in environ:
        _accept_slurm(environ)
    else:
        environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
    environ["LOCAL_SIZE"] = environ["LOCAL_WORLD_SIZE"]  # DeepSpeed's name for it
    env = RankEnv(*(_integer(environ, name) for name in _SLURM))
    if not (0 <= env.rank < env.world_size and 0 <= env.local_rank < env.local_world_size <= env.world_size):
        raise ParallelError(
            "the rank variables contradict each other",
            got=", ".join(f"{name}={environ[name]}" for name in _SLURM),
            expected="0 <= RANK < WORLD_SIZE and 0 <= LOCAL_RANK < LOCAL_WORLD_SIZE <= WORLD_SIZE",
            remedy=_LAUNCH,
        )
    if env.world_size == 1:  # nobody to meet: any free port will do
        environ.setdefault("MASTER_ADDR", "127.0.0.1")
        environ.setdefault("MASTER_PORT", str(_free_port()))
    return env


def device(env: RankEnv) -> torch.device:
    """Returns the device of this rank: its GPU, or the CPU where there is none or ``DS_ACCELERATOR=cpu``.

    Raises:
        ParallelError: If Slurm gave GPUs that torch does not see, and nobody asked for the CPU.
        RankError: If there are fewer visible GPUs than local ranks.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if given := unused_gpus(os.environ):
            raise ParallelError(
                "Slurm gave GPUs to this job, but torch sees none of them",
                got=f"{given}, torch {torch.__version__}",
                expected="a torch that sees them, or DS_ACCELERATOR=cpu",
                remedy=no_gpu_remedy(),
            )
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if env.local_rank >= visible:
        raise RankError(
            "this rank has no GPU of its own",
            got=f"LOCAL_RANK={env.local_rank} with {visible} visible GPUs",
            expected=f"at least {env.local_world_size} visible GPUs on each node",
            remedy="start fewer ranks per node; below Slurm ask for --gpus-per-node, not --gpus-per-task, "
            "which shows each rank a single one",
        )
    return torch.device("cuda", env.local_rank)


def unused_gpus(environ: Mapping[str, str]) -> str:
    """What Slurm says of GPUs that it gave, such as ``SLURM_GPUS_ON_NODE=8``; empty: none, or the CPU is wanted."""
    if environ.get("DS_ACCELERATOR") == "cpu":
        return ""
    if environ.get("SLURM_GPUS_ON_NODE") == "0":
        return ""
    return next((f"{name}={environ[name]}" for name in _SLURM_GPUS if environ.get(name)), "")


def no_gpu_remedy() -> str:
    """What a person can do where Slurm gave GPUs that torch does not see."""
    build = (
        "this torch is a CPU build: move .venv away and install with `ACCELERATOR=cuda make install`"
        if torch.version.cuda is None
        else "look at nvidia-smi, the driver and CUDA_VISIBLE_DEVICES on the node"
    )
    return f"{build}; to compute on CPUs all the same, export DS_ACCELERATOR=cpu"


def share_cores(env: RankEnv) -> None:
    """Gives each rank of a machine its share of the cores, unless ``OMP_NUM_THREADS`` says otherwise.

    torch starts a thread per core in every process; ranks that compute on the CPU then wait for each other.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // env.local_world_size))


def _accept_launcher(environ: MutableMapping[str, str]) -> None:
    if "LOCAL_WORLD_SIZE" not in environ and "LOCAL_SIZE" in environ:
        environ["LOCAL_WORLD_SIZE"] = environ["LOCAL_SIZE"]
    alone = environ.get("WORLD_SIZE") == "1"
    _require(environ, [*_SLURM, *(() if alone else _MASTER)], "the launcher's variables are incomplete", _LAUNCH)


def _accept_slurm(environ: MutableMapping[str, str]) -> None:
    if environ.get("SLURM_NTASKS") == "1":
        # One process has nobody to meet; Slurm gives SLURM_NTASKS_PER_NODE only where --ntasks-per-node was.
        environ.update({"SLURM_LOCALID": "0", "SLURM_NTASKS_PER_NODE": "1"})
    else:
        what = "this process runs below Slurm, but the variables of its rank are incomplete"
        _require(environ, [*_SLURM.values(), *_MASTER], what, _SRUN)
        if not environ["SLURM_NTASKS_PER_NODE"].isdigit():  # 4(x2),3: nodes with different numbers of tasks
            raise ParallelError(
                "the nodes run different numbers of ranks",
                got=f"SLURM_NTASKS_PER_NODE={environ['SLURM_NTASKS_PER_NODE']}",
                expected="one number",
                remedy=_SRUN,
            )
    environ.update({name: environ[source] for name, source in _SLURM.items()})


def _require(environ: MutableMapping[str, str], names: list[str], what: str, remedy: str) -> None:
    missing = [name for name in names if name not in environ]
    if missing:
        present = ", ".join(f"{name}={environ[name]}" for name in names if name in environ)
        raise ParallelError(
            what, got=f"{', '.join(missing)} not set ({present})", expected="all of them", remedy=remedy
        )


def _integer(environ: MutableMapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise ParallelError(
            f"{name} is not a number", got=repr(environ[name]), expected="a whole number", remedy=_LAUNCH
        ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
