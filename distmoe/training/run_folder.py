"""The folder of a run: ``config.yaml``, ``metrics.jsonl``, ``checkpoints/``, ``report/``, ``summary.json``.

:func:`open_run` decides, on rank 0, whether a run starts fresh or goes on, and refuses to mix two runs.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distmoe.checkpoint import folders
from distmoe.config import build
from distmoe.errors import CheckpointError, ConfigError
from distmoe.log import get_logger
from distmoe.training.config import RunConfig
from distmoe.training.monitor import METRICS_FILE, truncate

_log = get_logger(__name__)

CONFIG_FILE, SUMMARY_FILE, RESULT_FILE = "config.yaml", "summary.json", "result.json"
LAUNCH_FILE = "launch"  # which launch has claimed the folder
STOP_FILE = "stop"  # whoever makes it asks a run on several ranks to save and end at the next step border

# Keys that may differ between a run and its continuation: they change what is written, or how and where the same
# numbers are computed, not what is learned.
_FREE_KEYS = (
    "run.name", "run.output_dir", "run.log_every", "run.eval_every", "run.early_stop", "run.on_nonfinite",
    "run.tensorboard", "run.wandb", "run.report", "data.root", "data.cache_dir", "data.eval_batch_size",
    "data.micro_batch_size", "data.sampling.trunk_cache", "data.shifts.", "parallel.", "checkpoint.",
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run and, when it goes on, the checkpoint to load."""

    path: Path
    resume_from: Path | None
    finished: bool = False

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def goes_on(self) -> bool:
        """Whether the checkpoint to load is one of this very run."""
        return self.resume_from is not None and self.resume_from.resolve().parent == self.checkpoints.resolve()

    @property
    def metrics(self) -> Path:
        return self.path / METRICS_FILE


def run_path(config: RunConfig) -> Path:
    return Path(config.run.output_dir) / config.run.name


def open_run(config: RunConfig, *, resume: str, latest: Any) -> RunFolder:
    """Decides between fresh start and resume, without writing. Call it on one rank.

    Args:
        config: The resolved configuration.
        resume: ``auto`` goes on if the folder has a complete checkpoint, else starts fresh; ``must`` insists on one;
            ``never`` starts fresh (:func:`claim` then moves an older run aside); anything else is the path of a
            checkpoint.
        latest: ``latest(checkpoints_folder) -> Path | None``, the newest complete checkpoint.

    A launch that starts a run again, with the same arguments, has a name in DISTMOE_LAUNCH. Once it has claimed the
    folder, checkpoints there are its own: it goes on from the newest even with ``never`` or a path.

    Raises:
        ConfigError: If the folder belongs to a run with another configuration, or to one that has ended without scores
            under the shifts that are asked for.
        CheckpointError: If the wanted checkpoint does not exist.
    """
    path = run_path(config)
    if resume not in ("auto", "must") and _is_own(path) and latest(path / "checkpoints") is not None:
        resume = "auto"
    if resume == "never":
        return RunFolder(path, None)
    saved = _read_config(path)
    if resume not in ("auto", "must"):
        if not Path(resume).is_dir():
            raise CheckpointError(
                "the checkpoint to resume from does not exist",
                got=f"--resume {resume}",
                expected="auto, must, never, or the folder of a checkpoint (runs/NAME/checkpoints/step_N)",
                remedy="correct the path",
            )
        folder = RunFolder(path, Path(resume))
        if saved is not None and folder.goes_on:
            _refuse_other_config(saved, config, path)
        return folder
    if saved is not None:
        _refuse_other_config(saved, config, path)
    checkpoint = latest(path / "checkpoints") if saved is not None else None
    if checkpoint is None and resume == "must":
        raise CheckpointError(
            "there is no complete checkpoint to resume from",
            got=str(path / "checkpoints"),
            expected="at least one complete checkpoint",
            remedy="use --resume auto to start fresh, or correct run.name and run.output_dir",
        )
    finished = checkpoint is not None and (path / RESULT_FILE).exists()
    if checkpoint is not None and finished:
        _refuse_missing_shifts(path, checkpoint, config)
    return RunFolder(path, checkpoint, finished=finished)


def claim(folder: RunFolder, config: RunConfig, *, step: int, resume: str) -> None:
    """Makes the folder ready to be written: call it on rank 0, when the run is known to be able to start.

    A fresh start moves an older run aside (nothing is deleted); a resumed one drops metrics after ``step``. One that
    resumes from an earlier checkpoint than its newest first sets aside what it did after ``step``.
    """
    if folder.goes_on:
        _set_aside_later(folder, step)
    elif _holds_run(folder.path):
        _move_aside(folder.path, why="--resume never" if resume == "never" else "nothing to resume from in it")
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
    _write(folder.path / CONFIG_FILE, text)
    _write(folder.path / LAUNCH_FILE, _launch() + "\n")
    dropped = truncate(folder.metrics, step)
    if dropped:
        _log.info("%s: dropped %d lines after step %d, which will be run again", METRICS_FILE, dropped, step)
    (folder.path / RESULT_FILE).unlink(missing_ok=True)


def refuse_ended(folder: RunFolder, config: RunConfig, *, step: int) -> None:
    """Refuses a start from a checkpoint of another run behind the end of the schedule: nothing would be trained.

    The own run may have its scores to write yet.

    Raises:
        ConfigError: Naming the checkpoint's step and the schedule's.
    """
    if folder.resume_from is not None and not folder.goes_on and step >= config.schedule.num_steps:
        raise ConfigError(
            f"nothing is left to train behind {folder.resume_from}",
            got=f"a checkpoint of step {step}, schedule.num_steps={config.schedule.num_steps}",
            expected=f"schedule.num_steps above {step}",
            remedy="raise schedule.num_steps, or resume from an earlier checkpoint; tools/evaluate.py scores one",
        )


def is_result_of(path: Path, config: RunConfig) -> bool:
    """Whether a run with this very configuration has ended in the folder, which may have been moved since."""
    saved = _read_config(path)
    if saved is None or not (path / RESULT_FILE).is_file():
        return False
    return _without_places(_completed(saved)) == _without_places(config.model_dump(mode="json"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    _write(path, json.dumps(value, indent=1) + "\n")


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Rows (dotted key, saved value, wanted value) of keys that matter and differ."""
    rows: list[tuple[str, Any, Any]] = []
    for key in sorted({*saved, *wanted}):
        name, old, new = f"{prefix}{key}", saved.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            rows += differences(old, new, f"{name}.")
        elif old != new and not any(
            name == free or (free.endswith(".") and name.startswith(free)) for free in _FREE_KEYS
        ):
            rows.append((name, old, new))
    return rows


def _refuse_other_config(saved: Mapping[str, Any], config: RunConfig, path: Path) -> None:
    rows = differences(_completed(saved), config.model_dump(mode="json"))
    if rows:
        shown, more = rows[:6], f", and {len(rows) - 6} more" if len(rows) > 6 else ""
        raise ConfigError(
            f"the run folder {path} holds a run with another configuration",
            got=", ".join(f"{key}={new}" for key, _, new in shown) + more,
            expected=", ".join(f"{key}={old}" for key, old, _ in shown) + more,
            remedy="name a new run (run.name=...), which may go on from this one after a change of schedule or "
            f"optimizer (--resume {path / 'checkpoints' / 'step_N'}); or start over with --resume never, which "
            "moves the old folder aside",
        )


def _refuse_missing_shifts(path: Path, checkpoint: Path, config: RunConfig) -> None:
    """A run that has ended is not scored again: it would lack scores without a word."""
    scored = json.loads((path / RESULT_FILE).read_text(encoding="utf-8")).get("shifts", {})
    missing = [shift.name for shift in config.data.shifts.all if shift.name not in scored]
    if missing:
        raise ConfigError(
            f"the run in {path} has ended without scores under all shifts of data.shifts",
            got=", ".join(missing),
            expected=", ".join(scored) or "no shift",
            remedy=f"python tools/evaluate.py {checkpoint} --shifts data.shifts=..., or start over with --resume never",
        )


def _completed(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Gives keys that a newer version has added their defaults: a run of an older version then still goes on."""
    try:
        return build(RunConfig, saved).model_dump(mode="json")
    except ConfigError:  # a key that this version does not know any more is a difference to be shown
        return saved


def _without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    places = {"run": ("output_dir",), "data": ("cache_dir",)}
    return {
        name: {key: value for key, value in section.items() if key not in places[name]} if name in places else section
        for name, section in values.items()
    }


def _read_config(path: Path) -> Mapping[str, Any] | None:
    file = path / CONFIG_FILE
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None


def _launch() -> str:
    return os.environ.get("DISTMOE_LAUNCH", "")


def _is_own(path: Path) -> bool:
    """Whether an earlier start of this launch has claimed the folder."""
    file = path / LAUNCH_FILE
    return bool(_launch()) and file.is_file() and file.read_text(encoding="utf-8").strip() == _launch()


def _holds_run(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())


def _move_aside(path: Path, *, why: str) -> None:
    target = _free_name(path)
    path.rename(target)
    _log.warning("%s: the older run was moved to %s (%s)", path, target, why)


def _set_aside_later(folder: RunFolder, step: int) -> None:
    """Makes a run folder of its own of what the run did beyond the step that it goes back to.

    Left in place, later checkpoints would count as the newest and the best of a run that has not made them.
    """
    if max(folders.by_step(folder.checkpoints), default=step) <= step:
        return
    target = _free_name(folder.path)
    left_out = shutil.ignore_patterns(folder.checkpoints.name, "deepspeed", STOP_FILE)
    shutil.copytree(folder.path, target, symlinks=True, ignore=left_out)
    moved = folders.move_later(folder.checkpoints, target / folder.checkpoints.name, after=step)
    names = ", ".join(path.name for path in reversed(moved))
    _log.warning("%s goes back to step %d: %s moved to %s, with a copy of its log", folder.path, step, names, target)


def _free_name(path: Path) -> Path:
    """``NAME.old-DATE``, which does not exist yet."""
    base = path.with_name(f"{path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
    numbered = (base.with_name(f"{base.name}-{number}") for number in itertools.count(1))
    return next(target for target in itertools.chain([base], numbered) if not target.exists())


def _write(path: Path, text: str) -> None:
    """Writes aside, then renames: a killed run never leaves half a file."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
