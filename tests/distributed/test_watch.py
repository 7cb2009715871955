"""One rank goes wrong: all end in time, with a code, and exactly one message names rank, step and collective."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from tests.distributed.harness import ROOT
from tests.distributed.watched import SILENCE
from tests.integration.commands import free_port

LIMIT = 240  # seconds, imports on a busy machine included
HOST = re.escape(socket.gethostname())


@dataclass(frozen=True)
class Ended:
    codes: list[int]
    text: str
    seconds: float  # from the fault, seen by the end of the slowest rank; imports are not in it


def run(fault: str, culprit: int, *, ranks: int = 3) -> Ended:
    port = str(free_port())
    common = {
        "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.watched", fault, str(culprit)], cwd=ROOT, text=True,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    ended: dict[int, float] = {}
    try:
        end = time.monotonic() + LIMIT
        while len(ended) < ranks and time.monotonic() < end:
            for rank, one in enumerate(children):
                if one.poll() is not None:
                    ended.setdefault(rank, time.monotonic())
            time.sleep(0.05)
        assert len(ended) == ranks, f"rank {set(range(ranks)) - set(ended)} did not end"
        text = "".join(one.communicate(timeout=30)[0] for one in children)
        return Ended([one.returncode for one in children], text, max(ended.values()) - min(ended.values()))
    finally:
        for one in children:
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGKILL)
                one.wait()


def check(ended: Ended, pattern: str) -> None:
    assert ended.text.count("error: ") == 1, ended.text
    assert re.search(pattern, ended.text), ended.text
    assert "remedy:" in ended.text


def test_a_killed_rank_ends_all_with_one_message() -> None:
    ended = run("SIGKILL", 2)
    assert sorted(ended.codes) == [-9, 1, 1]
    check(
        ended,
        rf"error: rank 2 on {HOST} died, hangs or cannot be reached\n  got: [^\n]*last seen: rank 2[^\n]*in step 3, "
        r"forward pass; waiting for it: rank [01] on [^\n]*step 3, forward pass, all-to-all layer3/tokens forward, "
        r"task group 1, ranks 0-2",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "culprit", "codes", "pattern"),
    [
        ("SIGSTOP", 1, {1, -9}, rf"rank 1 on {HOST} died, hangs or cannot be reached\n[^\n]*for {SILENCE} s"),
        ("SIGKILL", 0, {1, -9}, rf"rank 0 on {HOST}, where the ranks meet, died[^\n]*\n[^\n]*step 3, forward pass"),
        ("SIGSTOP", 0, {1, -9}, rf"rank 0 on {HOST}, where the ranks meet, died"),
        ("exception", 1, {1}, rf"rank 1 on {HOST} failed in step 3, forward pass\n  got: +IndexError: no such row"),
        ("exception", 0, {1}, rf"rank 0 on {HOST} failed in step 3"),
        ("user", 2, {2}, "an example is broken"),
        ("splits", 1, {2}, r"split tables of ranks 0 and 1[\s\S]*sends 1 rows to rank 1, which expects 2[\s\S]*layer3"),
        ("order", 1, {2}, r"ranks run different collectives[\s\S]*ALLREDUCE"),
    ],
)
def test_every_fault_ends_in_one_message(fault: str, culprit: int, codes: set[int], pattern: str) -> None:
    ended = run(fault, culprit)
    assert set(ended.codes) == codes, ended.text
    check(ended, pattern)


def test_a_run_without_a_fault_ends_in_order_and_says_nothing() -> None:
    ended = run("none", 0, ranks=2)
    assert ended.codes == [0, 0], ended.text
    assert "error" not in ended.text
