"""Instants at which ranks are killed: the last complete checkpoint loads, the resumed run is as if never killed.

``make test-faults`` prints the table. Which instants, ranks and counts is drawn once from a seed, so that a row can be
run again by its name (``make test-faults ARGS="-k 'save-17'"``); when a signal from outside meets the run varies with
the machine. A row that kills ends with ``--resume auto`` and compares every line of the log, and every bit of weights
and moments, with a run that was left alone.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distmoe.checkpoint import folders
from distmoe.checkpoint.consolidate import read_moments, read_weights
from distmoe.checkpoint.integrity import verify
from distmoe.checkpoint.manifest import read_manifest
from tests.faults.rank import Strike
from tests.faults.runs import NUM_RANKS, Ended, Ranks, overrides, use_fork_server
from tests.integration.commands import TRAIN, environment, free_port, metrics

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

SEED, NUM_OUTSIDE, NUM_LAUNCHERS = 20, 10, 2

SAVES: dict[str, tuple[str, ...]] = {"save": (), "async": ("checkpoint.asynchronous=true",)}
"""Ways of saving: name -> overrides. Each is struck at every instant below, and meets its share of the others."""

_ALL, _FIRST = (0, 1), (0,)
INSTANTS: dict[str, tuple[Strike, tuple[int, ...]]] = {
    "before its chunks": (Strike("distmoe.checkpoint.storage:ShardWriter.write_data", "before"), _ALL),
    "its chunks are written": (Strike("distmoe.checkpoint.storage:ShardWriter.write_data", "after"), _ALL),
    "before the index": (Strike("distmoe.checkpoint.storage:ShardWriter.finish", "before"), _FIRST),
    "before its own state": (Strike("distmoe.checkpoint.store:write_rank_state", "before"), _ALL),
    "before the manifest": (Strike("distmoe.checkpoint.manifest:Manifest.write", "before"), _FIRST),
    "before the rename": (Strike("distmoe.checkpoint.manifest:Manifest.write", "after"), _FIRST),
    "before keep-last": (Strike("distmoe.checkpoint.folders:prune", "before"), _FIRST),
    "an old manifest is gone": (Strike("distmoe.checkpoint.folders:shutil.rmtree", "before"), _FIRST),
    "half of an old one is gone": (Strike("distmoe.checkpoint.folders:shutil.rmtree", "amid"), _FIRST),
}
"""Where a save is struck, and which ranks are there. The first two lie between the chunk files of two ranks."""

_ROUNDS = 3  # each instant is met in three different saves


@dataclass(frozen=True)
class Point:
    """One row of the campaign.

    Attributes:
        name: Of the row.
        saving: Key of ``SAVES``.
        instant: In words.
        ranks: Who dies: numbers of ranks, or nobody for a launcher's death.
        strike: Dies by itself at an exact place; None: is killed from outside.
        fraction: From outside: when, as a share of the duration of a run that is left alone.
    """

    name: str
    saving: str
    instant: str
    ranks: tuple[int, ...]
    strike: Strike | None = None
    fraction: float = 0.0


def draw_points() -> list[Point]:
    """The same fifty on every machine (more with several ways of saving)."""
    rng = random.Random(SEED)
    points = []
    for saving in SAVES:
        for turn in range(_ROUNDS):
            for instant, (strike, ranks) in INSTANTS.items():
                count = 1 + turn * 2 + rng.randrange(3)  # of twelve saves; removals begin with the third
                name = f"{saving}-{len(points) + 1}"
                points.append(Point(name, saving, instant, (rng.choice(ranks),), replace(strike, count=count)))
    for index in range(NUM_OUTSIDE):
        saving = list(SAVES)[index % len(SAVES)]
        fraction = rng.uniform(0.1, 0.95)
        if index < NUM_LAUNCHERS:
            points.append(Point(f"launcher-{index + 1}", saving, "the launcher", (), fraction=fraction))
        elif index % 4 == 0:
            points.append(Point(f"all-{index + 1}", saving, "all ranks, any time", _ALL, fraction=fraction))
        else:
            victim = rng.choice(_ALL)
            points.append(Point(f"time-{index + 1}", saving, "any time", (victim,), fraction=fraction))
    return points


POINTS = draw_points()


@dataclass(frozen=True)
class Whole:
    """The run that was left alone.

    Attributes:
        folder: Where it ran.
        cache: Token ids, shared by all runs.
        seconds: From the first fork to the last exit.
    """

    folder: Path
    cache: Path
    seconds: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = tmp_path_factory.mktemp("whole")
    use_fork_server(root / "extensions")
    cache = root / "cache"
    # The first run tokenizes, and the fork server imports; the second is as fast as those that will be killed.
    for name in ("first", "second"):
        began = time.monotonic()
        ended = Ranks(root / name, overrides(root / name, cache)).wait()
        assert ended.codes == (0, 0), ended.outputs[0]
    seconds = time.monotonic() - began
    assert metrics(root / "first" / "run") == metrics(root / "second" / "run")
    return Whole(root / "second", cache, seconds)


@pytest.fixture(scope="module")
def table(whole: Whole) -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    print(f"\nan uninterrupted run took {whole.seconds:.1f} s; {len(rows)} kill points:")
    print(f"{'point':12} {'instant':28} {'rank':5} {'killed':>7} {'resumed from':>13} {'left behind':24} outcome")
    print("\n".join(rows))


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_a_killed_run_goes_on_bit_by_bit(point: Point, whole: Whole, table: list[str], tmp_path: Path) -> None:
    arguments = overrides(tmp_path, whole.cache, *SAVES[point.saving])
    after = _strike(point, tmp_path, arguments, whole)
    checkpoints = tmp_path / "run" / "checkpoints"
    left = sorted(path.name for path in checkpoints.glob("*") if path not in folders.steps(checkpoints))
    latest = folders.latest(checkpoints)
    if latest is not None:
        assert verify(latest, read_manifest(latest), contents=True).problems == ()
        assert all(value.isfinite().all() for value in _state(latest).values())
    resumed = Ranks(tmp_path, ["--resume", "auto" if latest is None else "must", *arguments]).wait()
    assert resumed.codes == (0, 0), resumed.outputs[0]
    assert metrics(tmp_path / "run") == metrics(whole.folder / "run")
    last = folders.latest(checkpoints)
    reference = folders.latest(whole.folder / "run" / "checkpoints")
    assert last is not None
    assert reference is not None
    assert last.name == reference.name
    found, expected = _state(last), _state(reference)
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    assert not [path for path in checkpoints.iterdir() if path not in folders.steps(checkpoints)]
    who = "both" if len(point.ranks) > 1 else str(point.ranks[0] if point.ranks else "-")
    origin = "the start" if latest is None else latest.name
    table.append(
        f"{point.name:12} {point.instant:28} {who:5} {after:>7} {origin:>13} {', '.join(left) or '-':24} equal"
    )


def _strike(point: Point, folder: Path, arguments: list[str], whole: Whole) -> str:
    """Starts the run, kills it, and returns when that was."""
    if point.strike is not None:
        ended = Ranks(folder, arguments, strikes=dict.fromkeys(point.ranks, point.strike)).wait(grace=0.5)
        assert all(ended.codes[rank] == -signal.SIGKILL for rank in point.ranks), ended.outputs[0]
        return f"#{point.strike.count}"
    if not point.ranks:
        return _kill_launcher(folder, arguments, point.fraction)
    fraction = point.fraction
    for attempt in range(4):
        ended = _kill_after(folder / "start", arguments, point.ranks, fraction * whole.seconds)
        if any(code == -signal.SIGKILL for code in ended.codes):
            return f"{fraction * whole.seconds:.1f} s"
        # The machine was faster than before: the run had ended. It starts over and is killed earlier.
        (folder / "run").rename(folder / f"missed{attempt}")
        fraction *= 0.7
    raise AssertionError("the run was never met")


def _kill_after(folder: Path, arguments: list[str], ranks: tuple[int, ...], seconds: float) -> Ended:
    running = Ranks(folder, arguments)
    time.sleep(seconds)
    running.kill(ranks)
    return running.wait(grace=0.5)


def _kill_launcher(folder: Path, arguments: list[str], fraction: float) -> str:
    """``kill -9`` of the deepspeed launcher alone; its ranks outlive it, and are ended after a second start.

    The ranks are stopped while the run is started again, so that they cannot have ended before.
    """
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(NUM_RANKS), "--master_port",
               str(free_port()), str(TRAIN), *arguments]  # fmt: skip
    with (folder / "launcher.log").open("wb") as log:
        launcher = subprocess.Popen(
            command, cwd=folder, env=environment(folder), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    curve, lines = folder / "run" / "metrics.jsonl", 1 + int(10 * fraction)
    try:
        deadline = time.monotonic() + 240
        while not curve.exists() or len(curve.read_bytes().splitlines()) < lines:
            assert launcher.poll() is None, (folder / "launcher.log").read_text()[-4000:]
            assert time.monotonic() < deadline, "the launcher's ranks did not start"
            time.sleep(0.02)
        launcher.kill()
        launcher.wait()
        _signal_session(launcher.pid, signal.SIGSTOP)
        second = Ranks(folder / "second", arguments).wait()
        assert second.codes == (2, 2), second.outputs[0]
        assert "is being written by another process" in second.outputs[0]
    finally:
        _signal_session(launcher.pid, signal.SIGKILL)
    return f"line {lines}"


def _signal_session(leader: int, number: signal.Signals) -> None:
    """Signals every process of a session that this module started, also when its leader is gone."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(int(entry.name)) == leader:
                    os.kill(int(entry.name), number)


def _state(checkpoint: Path) -> dict[str, Tensor]:
    parts = {"fp32": read_weights(checkpoint)}
    parts |= {"exp_avg": read_moments(checkpoint, "exp_avg"), "exp_avg_sq": read_moments(checkpoint, "exp_avg_sq")}
    return {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}
