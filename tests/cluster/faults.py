"""Random faults in a run on two hosts with two ranks each: ``python -m tests.cluster.faults --count 30 --seed 0``.

For each fault: training starts, one thing goes wrong at a random moment, all processes must be gone in time, and the
run is started again and must end with the weights and metrics of a run that nobody disturbed, bit for bit. Prints a
table; exit code 1 if a line of it is not as it should be.

Faults: ``kill`` and ``stop`` (SIGKILL, SIGSTOP of a rank), ``cut`` (the link between the hosts swallows everything),
``disk`` (the disk of the run is full when the next checkpoint is saved). Ranks are forked from this process, which has
imported everything once: a start then takes two seconds instead of twenty.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.islands import Islands, build, isolate
from tests.integration.commands import metrics, overrides

STEPS, EVERY = 10, 3
SILENCE = 8  # parallel.silence_seconds
ALLOWED = SILENCE + 15  # a stopped rank is killed GRACE seconds after the silence; the rest is for two busy cores
LIMIT = 300  # what counts as a hang
KINDS = ("kill", "stop", "cut", "disk")
SAVING = "saving a checkpoint"
PHASES = ("loading data", "forward pass", "all-to-all", "backward pass", "step border", "optimizer step", SAVING)
PER_HOST, RANKS = 2, 4


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when: at the first ``phase`` on ``rank`` in or after ``step``."""

    kind: str
    rank: int
    step: int
    phase: str

    def __str__(self) -> str:
        who = {"cut": "link h1-h2", "disk": "the run's disk"}.get(self.kind, f"rank {self.rank}")
        return f"{self.kind} {who}, step {self.step}, {self.phase}"


@dataclass(frozen=True)
class Ended:
    """How the ranks of one start ended; ``seconds`` since the fault, or since the start without one."""

    codes: list[int]
    seconds: float
    text: str
    hung: bool
    left: list[str]


def draw(count: int, seed: int) -> list[Fault]:
    """Faults of all kinds in turn."""
    random_ = random.Random(seed)
    found = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        phase = SAVING if kind == "disk" else random_.choice(PHASES)
        found.append(Fault(kind, random_.randrange(RANKS), random_.randrange(1, STEPS - EVERY), phase))
    return found


def arguments(folder: Path) -> list[str]:
    return overrides(
        folder, "structure.grouping=family", "parallel.placement=partitioned", "parallel.ep_size=2",
        "parallel.timeout_minutes=5", f"parallel.silence_seconds={SILENCE}", f"schedule.num_steps={STEPS}",
        "model.moe.layers=odd",
        "run.eval_every=null", "run.log_every=3", f"checkpoint.every={EVERY}", "checkpoint.keep_last=20",
    )  # fmt: skip


def beside(folder: Path) -> Path:
    """Logs and marks, on another disk than the run."""
    return folder.with_name(f"{folder.name}.beside")


def rank_process(islands: Islands, rank: int, port: int, folder: Path, fault: Fault | None) -> None:
    """One rank, in a forked process; never returns."""
    code = 1
    try:
        os.setsid()
        with (beside(folder) / f"{rank}.log").open("ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        islands.enter(1 + rank // PER_HOST)
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_RANK=str(rank % PER_HOST), LOCAL_WORLD_SIZE=str(PER_HOST),
            MASTER_ADDR=islands.address(1), MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="eth0",
        )  # fmt: skip
        from distmoe import train

        if fault is not None and (rank == fault.rank or fault.kind == "disk"):
            plant(fault, folder, leads=rank == fault.rank)
        train._leave(train.main(arguments(folder)))
    except SystemExit as asked:
        code = int(asked.code or 0)
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def plant(fault: Fault, folder: Path, *, leads: bool) -> None:
    """Makes this rank strike at its moment; ``struck`` tells the parent, who cuts the link or fills the disk.

    All ranks wait for a full disk; of the other faults only one rank knows.
    """
    from distmoe.parallel.watch.whereabouts import Whereabouts

    at, exchange, done = Whereabouts.at, Whereabouts.exchange, [False]

    def strike(place: str, step: int | None) -> None:
        if done[0] or step is None or step < fault.step or not place.startswith(fault.phase):
            return
        done[0] = True
        if leads:
            (beside(folder) / "struck").touch()
        if fault.kind in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)
        wait_until(lambda: (beside(folder) / "ready").exists(), 60)

    def watched_at(self: Whereabouts, phase: str, *, step: int | None = None) -> None:
        at(self, phase, step=step)
        strike(phase, self.position.step)

    def watched_exchange(self: Whereabouts, call: object) -> object:
        strike("all-to-all", self.position.step)
        return exchange(self, call)  # type: ignore[arg-type]

    Whereabouts.at, Whereabouts.exchange = watched_at, watched_exchange  # type: ignore[method-assign, assignment]


def start(islands: Islands, folder: Path, port: int, fault: Fault | None) -> Ended:
    """Runs all ranks to their end."""
    marks = beside(folder)
    shutil.rmtree(marks, ignore_errors=True)
    marks.mkdir()
    children = {}
    for rank in range(RANKS):
        pid = os.fork()
        if pid == 0:
            rank_process(islands, rank, port, folder, fault)
        children[pid] = rank
    codes: dict[int, int] = {}
    began = time.monotonic()
    struck = False
    while len(codes) < RANKS and time.monotonic() < began + LIMIT:
        if fault is not None and not struck and (marks / "struck").exists():
            struck, began = True, time.monotonic()
            if fault.kind == "cut":
                islands.cut()
            elif fault.kind == "disk":
                fill(folder)
            (marks / "ready").touch()
        for pid, rank in children.items():
            if rank not in codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    seconds, hung = time.monotonic() - began, len(codes) < RANKS
    wait_until(lambda: not others(), 5)
    left = others()
    for pid in list(children):
        if children[pid] not in codes:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            codes[children[pid]] = -9
    if fault is not None and fault.kind == "cut" and struck:
        islands.heal()
    text = "".join((marks / f"{rank}.log").read_text(errors="replace") for rank in range(RANKS))
    if fault is not None and not struck:
        text += "\n(the fault never came)"
    return Ended([codes[rank] for rank in range(RANKS)], seconds, text, hung, left)


def fill(folder: Path) -> None:
    """Leaves a few kilobytes on the small file system of a run."""
    with (folder / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(b"\0" * 65536)
        except OSError:
            filler.truncate(max(0, filler.tell() - 8192))


def others() -> list[str]:
    """Processes of this PID namespace beside this one: ranks and what they started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if state != "Z":
                found.append(f"{entry.name} {command[:60]}")
    return found


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


def weights_equal(one: Path, other: Path) -> bool:
    """Compared in a forked process: this one must not start torch's threads, which a later fork would lose."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            import torch

            from distmoe.checkpoint.consolidate import read_weights

            a, b = (read_weights(path / "run" / "checkpoints" / f"step_{STEPS}") for path in (one, other))
            code = int(not (a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)))
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def one_fault(islands: Islands, whole: Path, folder: Path, port: int, fault: Fault) -> tuple[bool, str]:
    """Returns whether all was as it should be, and the row of the table."""
    folder.mkdir()
    if fault.kind == "disk":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
    shutil.copytree(whole / "cache", folder / "cache")
    try:
        ended = start(islands, folder, port, fault)
        (folder / "filler").unlink(missing_ok=True)
        again = start(islands, folder, port + 1, None)
        resumed = re.search(r"resumed from \S+ at step (\d+)", again.text)
        equal = again.codes == [0] * RANKS and weights_equal(whole, folder)
        equal = equal and metrics(whole / "run") == metrics(folder / "run")
    finally:
        if fault.kind == "disk":
            subprocess.run(["umount", str(folder)], check=True)
    said = re.findall(r"^error: (.*)$", ended.text, flags=re.MULTILINE)
    good = (
        not ended.hung and ended.seconds <= ALLOWED and not ended.left and equal
        and all(code != 0 for code in ended.codes) and 1 <= len(said) <= (2 if fault.kind == "cut" else 1)
    )  # fmt: skip
    if not good:
        print(f"--- {fault}\n{ended}\n--- again\n{again}", file=sys.stderr, flush=True)
    codes = " ".join(map(str, ended.codes))
    cells = [
        str(fault), "hung" if ended.hung else f"{ended.seconds:.1f}", codes, str(len(ended.left)), " / ".join(said),
        resumed[1] if resumed else "0", "yes" if equal else "NO",
    ]  # fmt: skip
    return good, f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    isolate("tests.cluster.faults")
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    # What every rank would import; forked, they share it.
    import deepspeed  # noqa: F401

    import distmoe.training.run  # noqa: F401

    islands = build(per_island=1)
    began, bad = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="distmoe-faults-") as name:
        os.environ["TORCH_EXTENSIONS_DIR"] = f"{name}/extensions"
        whole = Path(name) / "whole"
        whole.mkdir()
        undisturbed = start(islands, whole, 20000, None)
        if undisturbed.codes != [0] * RANKS:
            print(undisturbed.text, file=sys.stderr)
            return 1
        print("| fault | all ended after s | exit codes | processes left | the message | resumed from step | equal |")
        print("|---|--:|---|--:|---|--:|---|", flush=True)
        for number, fault in enumerate(draw(options.count, options.seed)):
            good, row = one_fault(islands, whole, Path(name) / str(number), 20010 + 2 * number, fault)
            bad += not good
            print(row, flush=True)
    print(f"\n{options.count - bad} of {options.count} as they should be, {time.monotonic() - began:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
