"""Where the numbers of a run go: ``metrics.jsonl`` always, TensorBoard and Weights & Biases when wanted.

Only rank 0 has sinks; :meth:`Monitor.write` on other ranks does nothing. A line of ``metrics.jsonl`` is one of::

    {"step": 20, "loss": 1.38, "task_loss": 1.37, "lr": 5e-4, "grad_norm": 0.8, "tokens_per_second": 9100.0,
     "skipped_steps": 0, "auxiliary": {"balance": 1.02}, "tasks": {"sst2": {"loss": 0.61, "examples": 320}},
     "routing": {"layer_1": {"load": [0.5, 0.5], "tasks": {"sst2": [120, 0]}}}}
    {"step": 20, "evaluation": {"split": "validation", "macro": 0.61, "loss": 0.9, "seconds": 1.4,
     "tasks": {"sst2": {"metric": "accuracy", "score": 0.61, "loss": 0.66, "examples": 872}}}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from distmoe.errors import ConfigError
from distmoe.log import get_logger

_log = get_logger(__name__)

METRICS_FILE = "metrics.jsonl"


class Sink(Protocol):
    """Receives every record; ``close`` flushes."""

    def write(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """One JSON object per line, on disk after every line, so that a killed run keeps its curve."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """Scalars for TensorBoard, below ``tensorboard/`` in the run folder.

    Args:
        folder: Where its event files are.
        step: Steps that are done; what older files hold of later ones is not shown any more.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, record: Mapping[str, Any]) -> None:
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Scalars for Weights & Biases; offline mode and keys follow wandb's own environment variables."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(project="distmoe", name=name, config=dict(config), dir=str(folder), resume="allow")
        # wandb drops what is logged for a step below its newest: the scores of the best checkpoint, when training ends.
        self._run.define_metric("train_step")
        self._run.define_metric("*", step_metric="train_step")

    def write(self, record: Mapping[str, Any]) -> None:
        self._run.log({**dict(scalars(record)), "train_step": record["step"]})

    def close(self) -> None:
        self._run.finish()


class Monitor:
    """Hands each record to all sinks. Use :func:`build_monitor`."""

    def __init__(self, sinks: tuple[Sink, ...] = ()) -> None:
        self._sinks = sinks

    def write(self, record: Mapping[str, Any]) -> None:
        record = finite(record)
        for sink in self._sinks:
            sink.write(record)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


class Buffer:
    """Keeps records until it is known whether they count."""

    def __init__(self) -> None:
        self._records: list[Mapping[str, Any]] = []

    def write(self, record: Mapping[str, Any]) -> None:
        self._records.append(record)

    def close(self) -> None: ...

    def hand_over(self, monitor: Monitor) -> None:
        for record in self._records:
            monitor.write(record)
        self._records.clear()


def require_trackers(*, wandb: bool) -> None:
    """Refuses a tracker that is wanted but not installed.

    Raises:
        ConfigError: If ``run.wandb`` is set and wandb cannot be imported.
    """
    if not wandb:
        return
    try:
        import wandb as _  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "run.wandb is set, but Weights & Biases is not installed",
            got=f"run.wandb=true ({error})",
            expected="the package wandb",
            remedy="pip install wandb (or distmoe[tracking]), or set run.wandb=false",
        ) from None


def build_monitor(
    folder: Path, *, rank: int, name: str, config: Mapping[str, Any], tensorboard: bool, wandb: bool, step: int = 0
) -> Monitor:
    """Opens the run's sinks on rank 0, after ``step`` steps; other ranks get a monitor without any."""
    if rank != 0:
        return Monitor()
    sinks: list[Sink] = [JsonlSink(folder / METRICS_FILE)]
    if tensorboard:
        try:
            sinks.append(TensorBoardSink(folder / "tensorboard", step=step))
        except ImportError:
            _log.info("tensorboard is not installed: scalars go to %s only", METRICS_FILE)
    if wandb:
        sinks.append(WandbSink(folder, name, config))
    return Monitor(tuple(sinks))


def finite(value: Any) -> Any:
    """JSON values with null in place of every number that is not finite: JSON has no infinity."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Flattens a record to ``("tasks/sst2/loss", 0.61)`` pairs; lists (loads, counts) and texts are left out."""
    for key, value in record.items():
        if key == "step" and not prefix:
            continue
        if key == "evaluation" and value.get("split", "validation") != "validation":
            # Test scores, also under shift, are no points of the validation's curve.
            yield from scalars(value, f"{prefix}{key}/{value['split']}/")
        elif isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)


def truncate(path: Path, step: int) -> int:
    """Drops lines after ``step``, lines of the final evaluation and an unfinished last line; returns how many.

    A resumed run repeats those steps, so its curve must not hold them twice. The rest stays byte for byte.
    """
    if not path.exists():
        return 0
    kept, dropped = [], 0
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            record = json.loads(line)
            keep = line.endswith("\n") and record["step"] <= step and not record.get("final", False)
        except (json.JSONDecodeError, KeyError, TypeError):
            keep = False
        if keep:
            kept.append(line)
        else:
            dropped += 1
    if dropped:
        aside = path.with_suffix(".tmp")
        aside.write_text("".join(kept), encoding="utf-8")
        aside.replace(path)
    return dropped
