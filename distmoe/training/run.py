"""One run from configuration to report: what ``distmoe/train.py`` does after it has read the command line."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from distmoe.checkpoint import folders
from distmoe.checkpoint.saver import Saver
from distmoe.engine.distributed import init_distributed
from distmoe.log import get_logger
from distmoe.parallel.env import RankEnv, device, read_env, share_cores
from distmoe.parallel.guard import explain
from distmoe.parallel.shared_folder import require_shared
from distmoe.parallel.watch.watch import Watch
from distmoe.parallel.watch.whereabouts import Whereabouts
from distmoe.training.agreement import Agreement
from distmoe.training.config import RunConfig
from distmoe.training.contradictions import check_environment, check_start
from distmoe.training.monitor import require_trackers
from distmoe.training.report import draw_report
from distmoe.training.run_folder import RESULT_FILE, STOP_FILE, RunFolder, open_run, run_path, write_json
from distmoe.training.run_lock import RunLock
from distmoe.training.setup import build_run
from distmoe.training.stop_file import StopFile
from distmoe.training.stop_signal import StopSignal
from distmoe.training.structural.phases import train_in_phases
from distmoe.training.trainer import Ended
from distmoe.training.workshop import Run

_log = get_logger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended, equal on all ranks."""

    folder: Path
    ended: Ended
    step: int


def train(config: RunConfig, *, resume: str, stop: StopSignal) -> Outcome:
    """Trains, evaluates on the test splits, writes the report. Every rank calls it.

    Args:
        config: The resolved configuration.
        resume: ``auto``, ``must``, ``never`` or the path of a checkpoint.
        stop: Has listened for a warning signal since the process began.

    Raises:
        DistmoeError: The same on all ranks, before the first step wherever that is possible.
        RunEnded: On several ranks, instead of any exception: one of them has said why.
    """
    # What needs no other rank is refused before ranks wait for each other.
    env = read_env()
    check_environment(config, num_ranks=env.world_size)
    require_trackers(wandb=config.run.wandb)
    share_cores(env)
    on = device(env)
    if on.type == "cuda":
        # Collectives of Python objects use the current device; without this it is the first one on every rank.
        torch.cuda.set_device(on)
    parallel = config.parallel
    init_distributed(timeout_minutes=parallel.timeout_minutes, guard=parallel.guard)
    stop_file = StopFile(run_path(config) / STOP_FILE, stop) if env.rank == 0 else nullcontext()
    with (
        stop_file,
        Watch(
            env,
            silence_seconds=parallel.silence_seconds,
            timeout_minutes=parallel.timeout_minutes,
            explain=explain,
        ) as watch,
    ):
        return _train(config, resume=resume, stop=stop, env=env, whereabouts=watch.whereabouts)


def _train(config: RunConfig, *, resume: str, stop: StopSignal, env: RankEnv, whereabouts: Whereabouts) -> Outcome:
    agreement = Agreement()
    lock = RunLock(run_path(config))
    agreement.from_rank_0(lock.acquire)
    try:
        return _train_alone(config, resume=resume, stop=stop, env=env, agreement=agreement, whereabouts=whereabouts)
    finally:
        lock.release()


def _train_alone(
    config: RunConfig,
    *,
    resume: str,
    stop: StopSignal,
    env: RankEnv,
    agreement: Agreement,
    whereabouts: Whereabouts,
) -> Outcome:
    """The run itself, while no other process writes its folder."""
    whereabouts.at("opening the run folder")
    if env.world_size > env.local_world_size:
        agreement.run(lambda: require_shared(Path(config.run.output_dir)))
    folder = agreement.from_rank_0(lambda: open_run(config, resume=resume, latest=folders.latest))
    check_start(config, resumes=folder.resume_from is not None)
    if folder.finished:
        _log.info("%s has ended already; --resume never starts it over", folder.path)
        return Outcome(folder.path, "Finished", config.schedule.num_steps)
    run, workshop = build_run(
        config, folder=folder, resume=resume, agreement=agreement, env=env, whereabouts=whereabouts
    )
    try:
        stop.arm()
        run, ended = train_in_phases(workshop, run, stop)
        stop.disarm()
        whereabouts.at("scoring the test splits (gathers)", step=run.state.step)
        shifted = tuple(shift.split for shift in config.data.shifts.all)
        _finish(run, folder, ended, shifted=shifted, stop=stop, rank=env.rank)
        # Another run may follow in this process, and no rank may still be in a collective of these process groups.
        whereabouts.at("ending the run", step=run.state.step)
        agreement.barrier()
        run.dismantle()
    except Exception:
        _complete(workshop.saver)
        raise
    finally:
        run.journal.close()
    if env.rank == 0 and config.run.report and ended != "Stopped by a signal":
        _log.info("report: %s", draw_report(folder.path))
    return Outcome(folder.path, ended, run.state.step)


def _complete(saver: Saver) -> None:
    """Lets the checkpoint that is being written beside a run that failed become complete, if that is possible."""
    try:
        saver.wait()
    except Exception as error:  # of a rank that is gone; the run's own error is the one to raise
        _log.warning("the checkpoint that was being written is lost: %s", error)


def _finish(run: Run, folder: RunFolder, ended: Ended, *, shifted: Sequence[str], stop: StopSignal, rank: int) -> None:
    """Scores the best weights on the test splits, writes ``result.json``; a stopped run only says how to go on."""
    state = run.state
    if ended == "Stopped by a signal":
        name = stop.name or "a signal on another rank"
        run.journal.say(f"stopped by {name} after step {state.step}; the same command goes on from there")
        return
    last_step = state.step
    chosen = run.checkpoints.load_best_weights()
    test_step = last_step if chosen is None else chosen
    scored = {}
    for split in ("test", *shifted):
        scored[split] = run.evaluate(split)
        run.journal.evaluated(scored[split], test_step, is_best=False, final=True)
    if rank == 0:
        result = {
            "ended": ended,
            "step": last_step,
            "seconds": round(state.train_seconds, 1),
            "best": {"step": state.best.step, "score": state.best.score},
            "test_step": test_step,
            "test_weights": "best" if test_step == state.best.step else "last",
            "test": scored["test"].to_json(),
            "shifts": {split.removeprefix("test~"): scored[split].to_json() for split in shifted},
        }
        write_json(folder.path / RESULT_FILE, result)
