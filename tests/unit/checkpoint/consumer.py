"""Loads exports in a fresh, isolated Python process in which distmoe cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def consume(jobs: list[dict[str, Any]], folder: Path, script_name: str = "hf_consumer.py") -> list[dict[str, Any]]:
    """Returns what the script, ``hf_consumer.py`` or ``hf_decoder_consumer.py``, made of each job."""
    torch.save(jobs, folder / "jobs.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules"), "HF_HOME": str(folder / "home")}
    script = Path(__file__).with_name(script_name)
    subprocess.run(
        [sys.executable, "-I", str(script), str(folder / "jobs.pt"), str(folder / "results.pt")],
        check=True,
        env=environment,
        cwd=folder,
        timeout=600,
    )
    results: list[dict[str, Any]] = torch.load(folder / "results.pt", weights_only=True)
    return results
