"""Processor time of conditional modules, of choosing them by a gather, and of an uncertainty step.

::

    python tools/bench/conditional.py                   # a 6-layer encoder of width 384, 9 tasks
    python tools/bench/conditional.py --quick --json OUT.json

Three tables, all ratios inside one loop (protocol: README.md): 1. forward + backward with each module and all of them,
to the plain encoder; 2. a conditional LayerNorm whose constants are gathered by task id, to a loop over tasks; 3. a
step of uncertainty sampling, to (T + 3) / 3 plain steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distmoe.data.batch import TaskBatch
from distmoe.models.build import build_model
from distmoe.models.config import ModelConfig
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.shape import EncoderShape
from distmoe.nn.conditional.config import ConditionalConfig
from distmoe.nn.conditional.generator import GeneratorFactory
from distmoe.nn.conditional.layer_norm import ConditionalLayerNorm
from distmoe.nn.conditional.module import reset_conditional
from distmoe.nn.conditional.task_embedding import TaskConditioner
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec

MODULES = ("attention", "alignment", "layer_norm", "bottleneck")
TASKS = TaskSet(
    tuple(
        TaskSpec(name=f"t{index}", kind="classification", metric="accuracy", labels=("no", "yes")) for index in range(9)
    )
)


@dataclass(frozen=True)
class Size:
    """What is timed."""

    width: int
    layers: int
    batch: int
    length: int


def model_of(size: Size, enabled: tuple[str, ...]) -> MultiTaskEncoder:
    """An encoder with the modules of ``enabled`` where they stand by default."""
    shape = EncoderShape(
        vocab_size=1000,
        pad_token_id=0,
        hidden_size=size.width,
        num_layers=size.layers,
        num_heads=size.width // 32,
        intermediate_size=4 * size.width,
        max_positions=size.length,
    )
    conditional = None
    if enabled:
        switches = {name: {"enabled": name in enabled} for name in MODULES}
        conditional = ConditionalConfig.model_validate(switches)
    config = ModelConfig(moe=None, dropout=0.0, attention_dropout=0.0, conditional=conditional)
    grouping = TaskGrouping.from_partitions(len(TASKS), ())
    return build_model(config, shape=shape, tasks=TASKS, grouping=grouping, hosting=(), seed=0)


def batch_of(size: Size, num_rows: int) -> TaskBatch:
    """Rows of all tasks in turn, without padding."""
    ids_BS = torch.randint(1, 1000, (num_rows, size.length), generator=torch.Generator().manual_seed(0))
    mask_BS = torch.ones_like(ids_BS, dtype=torch.bool)
    return TaskBatch(
        input_ids_BS=ids_BS,
        attention_mask_BS=mask_BS,
        token_type_ids_BS=torch.zeros_like(ids_BS),
        task_ids_B=torch.arange(num_rows) % len(TASKS),
        labels_B=torch.zeros(num_rows),
        loss_weights_B=torch.ones(num_rows),
        example_ids_B=torch.arange(num_rows),
        example_mask_B=torch.ones(num_rows, dtype=torch.bool),
        token_index_T=torch.arange(num_rows * size.length),
    )


def medians(arms: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Seconds of processor time per arm: one warm-up, then every arm once per repeat."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats + 1):
        for name, arm in arms.items():
            began = time.process_time()
            arm()
            if repeat:
                times[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def overhead(size: Size, repeats: int) -> dict[str, float]:
    """Time of forward + backward with each module, with all of them, relative to none."""
    batch = batch_of(size, size.batch)

    def step(model: MultiTaskEncoder) -> Callable[[], None]:
        return lambda: model(batch).logits_BC[:, 0].sum().backward()

    variants = {"plain": (), **{name: (name,) for name in MODULES}, "all": MODULES}
    models = {name: model_of(size, enabled) for name, enabled in variants.items()}
    with torch.no_grad():
        outputs = {name: model(batch).logits_BC for name, model in models.items()}
    for name, output in outputs.items():
        assert (output - outputs["plain"]).abs().max() <= 1e-5, f"{name} is not the plain encoder before training"
    found = medians({name: step(model) for name, model in models.items()}, repeats)
    return {name: value / found["plain"] for name, value in found.items()}


def looped(norm: ConditionalLayerNorm, conditioner: TaskConditioner, x_BSD: Tensor, task_ids_B: Tensor) -> Tensor:
    """The same by a loop over tasks, each with constants of its own."""
    z_Tk, weight_D, bias_D = conditioner.z_Tk, norm.weight, norm.bias
    y_BSD = torch.empty_like(x_BSD)
    for task in range(len(TASKS)):
        rows = (task_ids_B == task).nonzero().squeeze(1)
        if len(rows):
            gamma_D, beta_D = (norm.generator.weight @ z_Tk[task] + norm.generator.bias).chunk(2)  # type: ignore[index, operator]
            y_BSD[rows] = nn.functional.layer_norm(
                x_BSD[rows], norm.normalized_shape, weight_D * (1 + gamma_D), bias_D + beta_D, norm.eps
            )
    return y_BSD


def gather_against_loop(size: Size, repeats: int) -> dict[str, float]:
    """Time of a loop over tasks relative to the gather, for whole activations and for the constants alone."""
    factory = GeneratorFactory("linear", len(TASKS), 64)
    norm = ConditionalLayerNorm(size.width, eps=1e-12, form="scale_and_bias", generators=factory)
    conditioner = TaskConditioner(len(TASKS), 64)
    parts = nn.ModuleDict({"norm": norm, "conditioner": conditioner})
    reset_conditional(parts, 0, "bench", 0.02)
    nn.init.normal_(norm.generator.weight)  # type: ignore[arg-type]
    x_BSD = torch.randn(size.batch, size.length, size.width, requires_grad=True)
    tiny_BSD = torch.randn(size.batch, 1, size.width, requires_grad=True)
    task_ids_B = torch.arange(size.batch) % len(TASKS)
    difference = norm(x_BSD, conditioner(task_ids_B)) - looped(norm, conditioner, x_BSD, task_ids_B)
    assert difference.abs().max() <= 1e-5
    arms = {
        "gather": lambda: norm(x_BSD, conditioner(task_ids_B)).sum().backward(),
        "loop": lambda: looped(norm, conditioner, x_BSD, task_ids_B).sum().backward(),
        "gather, one position": lambda: norm(tiny_BSD, conditioner(task_ids_B)).sum().backward(),
        "loop, one position": lambda: looped(norm, conditioner, tiny_BSD, task_ids_B).sum().backward(),
    }
    found = medians(arms, 4 * repeats)
    return {
        "whole activations": found["loop"] / found["gather"],
        "one position": found["loop, one position"] / found["gather, one position"],
    }


def uncertainty_step(size: Size, repeats: int) -> dict[str, float]:
    """Time of scoring T x batch candidates and training batch of them, relative to one plain training step."""
    model = model_of(size, MODULES)
    batch = batch_of(size, size.batch)

    def train() -> None:
        model(batch).logits_BC[:, 0].sum().backward()

    def choose_and_train() -> None:
        with torch.no_grad():
            for _ in range(len(TASKS)):
                model(batch)
        train()

    found = medians({"plain": train, "uncertainty": choose_and_train}, repeats)
    expected = (len(TASKS) + 3) / 3
    ratio = found["uncertainty"] / found["plain"]
    return {"ratio": ratio, "(T+3)/3": expected, "of expected": ratio / expected}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time conditional modules.")
    parser.add_argument("--quick", action="store_true", help="a smaller encoder, fewer repeats")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    size, repeats = (Size(128, 4, 18, 32), 7) if arguments.quick else (Size(384, 6, 32, 128), 11)
    tables: dict[str, Any] = {
        "overhead of modules": overhead(size, repeats),
        "loop over tasks / gather": gather_against_loop(size, repeats),
        "uncertainty step": uncertainty_step(size, repeats),
    }
    print(f"{size}, {len(TASKS)} tasks, torch {torch.__version__}, one thread, processor time")
    for title, table in tables.items():
        print(title)
        for name, value in table.items():
            print(f"  {name:20} {value:6.2f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"size": str(size), **tables}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
