"""Trains one run through ``distmoe/train.py`` in processes of its own, or in this one; reads what it has written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import distmoe
from distmoe import log
from distmoe.errors import TrainingError
from distmoe.recipes import resolve
from distmoe.structure.tree import family_agreement
from distmoe.training.run_folder import RESULT_FILE, SUMMARY_FILE, is_result_of
from distmoe.training.stop_signal import StopSignal

TRAIN = Path(distmoe.__file__).parent / "train.py"
# What a study does not need of a run; set before a user's own overrides, which may want them.
QUIET = ("run.report=false", "run.tensorboard=false", "checkpoint.keep_last=1")


def command(recipe: str, overrides: Sequence[str], *, num_ranks: int) -> list[str]:
    """The command of a run, which goes on where an interrupted one stopped."""
    launcher = [sys.executable]
    if num_ranks > 1:
        launcher += ["-m", "deepspeed.launcher.runner", "--num_gpus", str(num_ranks)]
    return [*launcher, str(TRAIN), "--recipe", recipe, *overrides]


def train(recipe: str, overrides: Sequence[str], *, folder: Path, num_ranks: int) -> dict[str, Any]:
    """Trains into ``folder`` and returns the outcome; its output goes to ``folder.log``.

    A run of these settings that has ended there is read: without its checkpoints it would begin anew.

    Raises:
        TrainingError: If the run does not end well, with the last lines of its output.
    """
    overrides = _overrides(overrides, folder)
    if is_result_of(folder, resolve(recipe, overrides)):
        return read_outcome(folder)
    arguments = command(recipe, overrides, num_ranks=num_ranks)
    transcript = folder.with_name(f"{folder.name}.log")
    transcript.parent.mkdir(parents=True, exist_ok=True)
    with transcript.open("ab") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, env=os.environ)
        try:
            code = process.wait()
        finally:
            if process.poll() is None:  # this process is being ended: the run saves a checkpoint and leaves
                process.terminate()
                process.wait()
    if code != 0 or not (folder / RESULT_FILE).is_file():
        tail = transcript.read_text(encoding="utf-8", errors="replace").splitlines()[-6:]
        raise TrainingError(
            f"the run {folder.name} has not ended",
            got=f"exit code {code}; the end of {transcript}:\n    " + "\n    ".join(tail),
            expected=f"exit code 0 and {folder / RESULT_FILE}",
            remedy="correct what the run complains about; the same command goes on with the runs that are missing",
        )
    return read_outcome(folder)


def train_here(recipe: str, overrides: Sequence[str], *, folder: Path) -> dict[str, Any]:
    """The same on one rank in this process: saves small runs their start, which takes longer than they do.

    Call :func:`distmoe.engine.distributed.shut_down` at the end of the process.

    Raises:
        TrainingError: If somebody asked the run to stop; it has saved a checkpoint.
    """
    from distmoe.training.run import train as train_run

    config = resolve(recipe, _overrides(overrides, folder))
    if is_result_of(folder, config):
        return read_outcome(folder)
    log.configure()
    stop = StopSignal().expect_warning()
    outcome = train_run(config, resume="auto", stop=stop)
    if outcome.ended == "Stopped by a signal":
        raise TrainingError(
            f"the run {folder.name} has not ended",
            got=f"{stop.name} after step {outcome.step}",
            expected="a run that ends by itself",
            remedy="the same command goes on from there",
        )
    return read_outcome(folder)


def _overrides(overrides: Sequence[str], folder: Path) -> list[str]:
    """With what does not change the outcome, and so is no part of a run's settings: where things are."""
    cache = f"data.cache_dir={folder.parents[1] / 'cache'}"
    return [*QUIET, cache, *overrides, f"run.output_dir={folder.parent}", f"run.name={folder.name}"]


def read_outcome(folder: Path) -> dict[str, Any]:
    """Test scores, steps, seconds, parameters and sample accounts of a run that has ended, as plain values.

    Parameters are those of the model that was tested: after the last merge, where task groups were learned.
    """
    result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    with (folder / "metrics.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    samples = [line["samples"] for line in lines if "samples" in line]
    phases = [line["structure"] for line in lines if "structure" in line]
    partitions = phases[-1]["grouping"] if phases else summary["grouping"]["layers"]
    parameters = phases[-1]["parameters"]["after"] if phases else summary["parameters"]["total"]
    shares = summary["shares"]
    frozen = 0 if shares is None else shares["frozen_backbone"] + shares["frozen_added"]
    return {
        "tasks": {name: row["score"] for name, row in result["test"]["tasks"].items()},
        "metrics": {name: row["metric"] for name, row in result["test"]["tasks"].items()},
        "shifts": {
            name: {"macro": row["macro"], "tasks": {task: one["score"] for task, one in row["tasks"].items()}}
            for name, row in result.get("shifts", {}).items()
        },
        "steps": result["step"],
        "best_step": result["best"]["step"],
        "seconds": result["seconds"],
        "parameters": parameters,
        "trained": parameters - frozen,
        "samples": {key: value for key, value in samples[-1].items() if key != "tasks"} if samples else {},
        "task_groups": [len(partition) for partition in partitions],
        "agreement": family_agreement([task["family"] for task in summary["tasks"]], map(tuple, partitions[-1]))
        if partitions
        else None,
    }


def _joined(scores: dict[str, float]) -> dict[str, Any]:
    return {"macro": sum(scores.values()) / len(scores), "tasks": scores}


def side_by_side(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One outcome from those of several models, each with tasks of its own: costs and sizes add up."""
    merged = dict(outcomes[0])
    for outcome in outcomes[1:]:
        for key in ("tasks", "metrics"):
            merged[key] = merged[key] | outcome[key]
        merged["shifts"] = {
            name: _joined(row["tasks"] | outcome["shifts"][name]["tasks"]) for name, row in merged["shifts"].items()
        }
        for key in ("steps", "seconds", "parameters", "trained"):
            merged[key] += outcome[key]
        merged["samples"] = {
            key: merged["samples"][key] + outcome["samples"][key]
            for key in merged["samples"]
            if key != "distinct_share"  # of its own tasks
        }
        merged["best_step"] = merged["agreement"] = None
        merged["task_groups"] = []
    return merged
