#!/usr/bin/env python3
"""Is this cluster fit for a run? Started like train.py, with its arguments; ends with a verdict and remedies.

python tools/doctor.py                                               # this machine alone
deepspeed --hostfile hostfile tools/doctor.py --recipe glue          # all ranks, with the links between them
sbatch slurm/doctor.sbatch --recipe glue
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist

from distmoe.doctor.finding import Finding, report
from distmoe.doctor.machine import check_machine
from distmoe.doctor.ranks import block_members, check_ranks, measure
from distmoe.engine.distributed import init_distributed, shut_down
from distmoe.errors import DistmoeError
from distmoe.parallel.env import device, read_env
from distmoe.recipes.loader import DEFAULT_RECIPE, resolve
from distmoe.train import USER_ERROR, parser, report_unshared

_SECONDS = 5.0  # of collectives, per process group
_TIMEOUT = 0.5  # minutes: who does not come within it will not come


def main(argv: list[str] | None = None) -> int:
    try:
        arguments = parser("doctor.py", __doc__.splitlines()[0]).parse_intermixed_args(argv)
        config = resolve(arguments.recipe or DEFAULT_RECIPE, arguments.overrides)
        env = read_env()
        folder = Path(config.run.output_dir)
        several_nodes = env.world_size > env.local_world_size
        findings = check_machine(local_ranks=env.local_world_size, several_nodes=several_nodes, folder=folder)
        if env.world_size > 1:
            on = device(env)
            if on.type == "cuda":
                torch.cuda.set_device(on)
            ep_size = config.parallel.ep_size
            blocks = block_members(env.world_size, tensor=config.parallel.tensor, ep_size=ep_size)
            init_distributed(timeout_minutes=_TIMEOUT)
            findings = [*together(findings), *check_ranks(folder)]
            links = measure("world", None, on, seconds=_SECONDS)
            if ep_size > 1 and len(blocks) > 1:
                block, _ = dist.new_subgroups_by_enumeration(blocks, timeout=timedelta(minutes=_TIMEOUT))
                links += measure(f"block of {ep_size}", block, on, seconds=_SECONDS)
            findings += together(links)
    except DistmoeError as error:
        report_unshared(error)
        return USER_ERROR
    if env.rank == 0:
        print("\n".join(report(findings)), flush=True)
    return USER_ERROR if any(finding.verdict == "problem" for finding in findings) else 0


def together(own: list[Finding]) -> list[Finding]:
    """Findings of all ranks: rank 0's, and what other hosts found that is not ok."""
    everyone: list[list[Finding] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    others = [
        Finding(f"{finding.name} (rank {rank})", finding.verdict, finding.detail, finding.remedy)
        for rank, findings in enumerate(everyone)
        for finding in findings or []
        if rank and finding.verdict != "ok"
    ]
    return [*(everyone[0] or []), *others]


if __name__ == "__main__":
    shut_down(exit_code=main())
