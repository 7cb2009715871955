#!/usr/bin/env python3
"""Stands in for the training's python in tests of the batch scripts: no torch, so a job takes a second.

Called as ``stand_in.py distmoe/train.py ACTION ...`` by every rank.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

asked = False


def on_signal(*_: object) -> None:
    global asked
    asked = True


signal.signal(signal.SIGUSR1, on_signal)
rank = int(os.environ["SLURM_PROCID"])
action, *rest = sys.argv[2:]


def say(text: str) -> None:
    print(f"{text}\n", end="", flush=True)


if action == "where":
    names = ("SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE", "SLURMD_NODENAME", "MASTER_ADDR")
    say(f"rank {rank} of {' '.join(os.environ[name] for name in names)} arguments {' '.join(rest)}")
elif action == "fail":  # RANK CODE: one rank fails while the others wait
    if rank == int(rest[0]):
        sys.exit(int(rest[1]))
    time.sleep(120)
elif action == "fail-once":  # CODE: and end well after a restart
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        sys.exit(int(rest[0]))
    say("ended")
elif action == "fail-when-asked":
    say("ready")
    while not asked:
        time.sleep(0.05)
    sys.exit(7)
elif action == "until-asked":  # FILE: leaves in order when asked, with a mark; ends at once where marks are
    mark = Path(f"{rest[0]}.{rank}")
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    if mark.exists():
        say(f"resumed after {restarts} restarts on {os.environ['SLURMD_NODENAME']}")
        sys.exit(0)
    say("ready")
    while not asked:
        time.sleep(0.05)
    mark.touch()
    say("saved")
elif action == "until-restarted":  # ends only in a job that Slurm started again
    say(f"on {os.environ['SLURMD_NODENAME']}")
    while os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        time.sleep(0.2)
    say("ended")
else:
    say(f"arguments {action} {' '.join(rest)}")
