"""One rank of ``test_watch``: ``python -m tests.distributed.watched FAULT RANK``; who it is, the environment says.

Trains nothing: a watched loop of all-to-alls between all ranks, in which one rank goes wrong.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from distmoe.errors import DataError, RunEnded
from distmoe.parallel.all_to_all import all_to_all
from distmoe.parallel.env import read_env
from distmoe.parallel.guard import CollectiveGuard, arm, explain
from distmoe.parallel.watch.watch import Watch
from distmoe.parallel.watch.whereabouts import FORWARD

SILENCE, STEPS = 8, 6


def main(fault: str, culprit: int) -> int:
    env = read_env()
    if fault == "order":
        arm()
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    guard = (CollectiveGuard(),) if fault in ("splits", "order") else ()
    try:
        with Watch(env, silence_seconds=SILENCE, timeout_minutes=2, explain=explain) as watch:
            here, size = watch.whereabouts, env.world_size
            for step in range(STEPS):
                here.at(FORWARD, step=step)
                if step == 3 and env.rank == culprit:
                    time.sleep(1.5)  # the last sign says where it was
                    _go_wrong(fault)
                wanted = [1] * size
                if fault == "splits" and step == 3 and env.rank == culprit:
                    wanted[0] = 2  # one row more than rank 0 sends: gloo would hand out old memory
                all_to_all(
                    torch.full((size, 4), float(env.rank)),
                    send_counts=[1] * size,
                    receive_counts=wanted,
                    process_group=dist.group.WORLD,
                    tag="layer3/tokens",
                    task_groups=(1,),
                    observers=(here, *guard),
                )
    except RunEnded as ended:
        return ended.code
    return 0


def _go_wrong(fault: str) -> None:
    if fault in ("SIGKILL", "SIGSTOP"):
        os.kill(os.getpid(), signal.Signals[fault])
        time.sleep(1)  # a signal to oneself may come a moment later
    elif fault == "exception":
        raise IndexError("no such row")
    elif fault == "user":
        raise DataError("an example is broken", got="7", expected="0 or 1", remedy="repair it")
    elif fault == "order":
        dist.all_reduce(torch.ones(3))


if __name__ == "__main__":
    code = main(sys.argv[1], int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
