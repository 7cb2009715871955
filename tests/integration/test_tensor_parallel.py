"""A language model trained on two tensor ranks: losses, checkpoints and exports are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.commands import launch, metrics, run_alone
from tests.unit.checkpoint.tools import main_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        "--recipe", "lm", f"run.output_dir={folder}", "run.name=run", f"data.cache_dir={folder / 'cache'}",
        "model.hidden_size=32", "model.num_layers=2", "model.intermediate_size=64", "data.batch_size=8",
        "schedule.num_steps=8", "run.log_every=2", "run.eval_every=4", "checkpoint.every=4", "run.tensorboard=false",
        "run.report=false", "optimizer.eps=1e-5", *more,
    ]  # fmt: skip


def numbers(line: Any) -> list[float]:
    """All numbers of a line of metrics, in order."""
    if isinstance(line, dict):
        return [number for value in line.values() for number in numbers(value)]
    if isinstance(line, list):
        return [number for value in line for number in numbers(value)]
    return [float(line)] if isinstance(line, (int, float)) else []


def exported(folder: Path, *task: str) -> dict[str, torch.Tensor]:
    """All tensors of the whole model's export, or of a task's."""
    out = folder / "_".join(["export", *task])
    arguments = [str(folder / "run" / "checkpoints" / "step_8"), str(out), *(("--task", *task) if task else ())]
    assert main_of("convert_to_hf")(arguments) == 0
    return {key: value for path in sorted(out.glob("*.safetensors")) for key, value in load_file(path).items()}


def test_a_run_on_two_tensor_ranks_is_that_of_one_process(tmp_path: Path) -> None:
    alone, pair, resumed = (tmp_path / name for name in ("alone", "pair", "resumed"))
    done = run_alone(alone, arguments(alone))
    assert done.code == 0, done.output
    done = launch(pair, arguments(pair, "parallel.tensor=2"))
    assert done.code == 0, done.output
    assert "tensor parallelism: 2 neighbouring ranks" in done.output
    # One process goes on from the slices of two ranks.
    done = run_alone(resumed, arguments(resumed, "--resume", str(pair / "run" / "checkpoints" / "step_4")))
    assert done.code == 0, done.output

    for run, first in ((pair, 0), (resumed, 5)):
        expected, found = (
            [numbers(line) for line in metrics(folder / "run") if line["step"] >= first] for folder in (alone, run)
        )
        assert len(expected) == len(found) > 0
        for wanted, got in zip(expected, found, strict=True):
            assert got == pytest.approx(wanted, abs=1e-4)
    for task in ((), ("prose0_a",)):
        wanted, found = exported(alone, *task), exported(pair, *task)
        assert wanted.keys() == found.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, atol=1e-5, rtol=0)
