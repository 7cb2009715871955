"""An arrangement as arguments of ``distmoe/train.py``, exactly as it was forecast."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from distmoe.engine import ds_config
from distmoe.forecast.arrangement import Forecast
from distmoe.forecast.choice import Choice
from distmoe.forecast.hardware import Cluster
from distmoe.forecast.workload import Workload


def typed(workload: Workload, cluster: Cluster, found: Forecast, *, folder: Path) -> str:
    """Returns what to type after the recipe and its overrides.

    The DeepSpeed file is the run's own or a shipped one, if either says just that. Else one that does is written; its
    name says what is in it, so that another plan never changes it.

    Args:
        workload: The run.
        cluster: Of its data ranks.
        found: What was forecast.
        folder: For a file that is written.
    """
    choice = found.choice
    file = next((name for name in _names(workload) if _read(name, workload, cluster, found) == choice), None)
    if file is None:
        path = folder / f"{_name(choice)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(choice.deepspeed(), indent=2) + "\n", encoding="utf-8")
        file = str(path)
    return f"--deepspeed_config {shlex.quote(file)} parallel.placement={choice.mode} parallel.ep_size={choice.ep_size}"


def _names(workload: Workload) -> list[str]:
    own = workload.config.parallel.deepspeed
    return [*([] if own == "auto" else [own]), *sorted(file.stem for file in ds_config.CONFIG_FOLDER.glob("*.json"))]


def _read(name: str, workload: Workload, cluster: Cluster, found: Forecast) -> Choice:
    """What a file says, at the placement that was forecast."""
    settings = ds_config.resolve(
        name,
        optimizer=workload.config.optimizer,
        micro_batch_size=found.micro_batch,
        accumulation_steps=found.accumulation,
        num_ranks=cluster.num_ranks,
        device_type=cluster.accelerator.device_type,
    )
    return Choice.of(found.choice.config(workload.config).parallel, settings, stage=None, precision=None)


def _name(choice: Choice) -> str:
    parts = [f"zero{choice.stage}_{choice.precision}", f"bucket{choice.bucket}"]
    if choice.rounds_sums:
        parts.append(f"sums_{choice.precision}")
    return "_".join([*parts, *(["overlap"] * choice.overlap_comm), *(["offload"] * choice.offload)])
