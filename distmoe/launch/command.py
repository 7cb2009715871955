"""The exact command that starts a run at a place, as a person could type it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distmoe.launch.places import Local, Place, Slurm

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "distmoe" / "train.py"

# What the ranks need of this shell and DeepSpeed's ssh launcher does not hand on by itself (PYTHON* and NCCL* it does).
_HANDED_ON = (
    "PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "TORCH_EXTENSIONS_DIR", "DS_ACCELERATOR",
    "CUDA_HOME", "HF_HOME", "HF_HUB_OFFLINE", "DISTMOE_LAUNCH",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """What to run, and variables that it needs beside those of this shell."""

    words: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """As one line of a shell."""
        set_here = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*set_here, shlex.join(self.words)])


def build(
    place: Place, arguments: Sequence[str], *, folder: Path, port: int, script: Path = TRAIN, test_only: bool = False
) -> Command:
    """The command for a place.

    Args:
        place: Where.
        arguments: Of ``script``.
        folder: For the files that a command names (hostfile, variables for other hosts); written here.
        port: Where the ranks meet; Slurm's jobs choose their own.
        script: What every rank runs.
        test_only: Of Slurm: ask only whether the job would be accepted.
    """
    if isinstance(place, Slurm):
        test = ["--test-only"] if test_only else []
        settings = f"DISTMOE_RESTARTS={place.restarts},DISTMOE_PAUSE={place.pause}"
        export = [f"--export=ALL,{settings}"] if place.restarts else []
        batch = str(ROOT / "slurm" / f"{'train' if script == TRAIN else script.stem}.sbatch")
        return Command(("sbatch", *test, *place.geometry(), *export, *place.options, batch, *arguments))
    deepspeed = shutil.which("deepspeed", path=str(Path(sys.executable).parent)) or "deepspeed"
    meeting = ["--master_port", str(port)]
    if isinstance(place, Local):
        return Command((deepspeed, "--num_gpus", str(place.num_ranks), *meeting, str(script), *arguments))
    hostfile = folder / "hostfile"
    folder.mkdir(parents=True, exist_ok=True)
    hostfile.write_text("".join(f"{host} slots={slots}\n" for host, slots in place.slots.items()))
    words = [deepspeed, "--hostfile", str(hostfile.resolve()), "--master_addr", place.master, *meeting]
    if place.node_rank is not None:
        return Command((*words, "--no_ssh", "--node_rank", str(place.node_rank), str(script), *arguments))
    # The check of DeepSpeed asks only the first host; ours has asked all.
    words += ["--launcher", "pdsh", "--no_ssh_check", "--force_multi"]
    if place.ssh_port is not None:
        words += ["--ssh_port", str(place.ssh_port)]
    handed_on = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
    (folder / "environment").write_text("".join(f"{name}={value}\n" for name, value in handed_on.items()))
    variables = {"DS_ENV_FILE": str((folder / "environment").resolve())}
    return Command((*words, str(script), *arguments), variables)
