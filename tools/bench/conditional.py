"""Processor time of conditional modules, of choosing them by a gather, and of an uncertainty step.

::

    python tools/bench/conditional.py                   # 6 layers of width 384, 32 sequences of 64 tokens, 9 tasks
    python tools/bench/conditional.py --quick --json OUT.json

Ratios inside one loop (protocol: README.md): 1. forward + backward with each module and all of them, to the plain
encoder; 2. loops over tasks as the published code has them, to the gather by task id, for a conditional LayerNorm,
beside the plain one, and for the attention bias, at this size and at that of the paper; 3. a step of uncertainty
sampling, in steps that train everything, without and with the lower half frozen and its output kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distmoe.data.batch import TaskBatch
from distmoe.models.build import build_model
from distmoe.models.config import ModelConfig
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.shape import EncoderShape
from distmoe.nn.conditional.attention import ConditionalAttentionBias
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


PAPER = Size(width=768, layers=12, batch=32, length=128)  # BERT-base


def model_of(size: Size, enabled: tuple[str, ...], *, frozen: bool = False) -> MultiTaskEncoder:
    """An encoder with the modules of ``enabled`` where they stand by default, or above a frozen lower half."""
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
        start = "first_trainable" if frozen else "embeddings"
        conditional = ConditionalConfig.model_validate({"condition_from": start, **switches})
    freeze: Literal["lower_half", "none"] = "lower_half" if frozen else "none"
    config = ModelConfig(moe=None, dropout=0.0, attention_dropout=0.0, conditional=conditional, freeze=freeze)
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
    """Seconds of processor time per arm: one warm-up, then every arm once per repeat, each time another one first."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats + 1):
        first = repeat % len(arms)
        for name, arm in [*arms.items()][first:] + [*arms.items()][:first]:
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
    """The LayerNorm as the published code has it: a mask of rows, generated numbers and a LayerNorm per task."""
    z_Bk = conditioner.z_Tk[task_ids_B]  # type: ignore[index]
    y_BSD = torch.zeros_like(x_BSD)
    for task in torch.unique(task_ids_B):
        rows_B = task_ids_B == task
        gamma_D, beta_D = (norm.generator.weight @ z_Bk[rows_B][0] + norm.generator.bias).chunk(2)  # type: ignore[operator]
        y_BSD[rows_B] = nn.functional.layer_norm(
            x_BSD[rows_B], norm.normalized_shape, norm.weight * (1 + gamma_D), norm.bias + beta_D, norm.eps
        )
    return y_BSD


def looped_bias(
    bias: ConditionalAttentionBias, conditioner: TaskConditioner, task_ids_B: Tensor, mask_B11S: Tensor
) -> Tensor:
    """The attention bias by a loop over tasks like that of the LayerNorm, with a block-diagonal matrix of each."""
    length, side = bias.blocks_Ls.shape
    z_Bk = conditioner.z_Tk[task_ids_B]  # type: ignore[index]
    M_BSS = bias.blocks_Ls.new_zeros(len(task_ids_B), length, length)
    for task in torch.unique(task_ids_B):
        rows_B = task_ids_B == task
        gamma_s, beta_s = (bias.generator.weight @ z_Bk[rows_B][0] + bias.generator.bias).chunk(2)  # type: ignore[operator]
        M_BSS[rows_B] = diagonal_of((bias.blocks_Ls * (1 + gamma_s) + beta_s).split(side))
    return M_BSS.unsqueeze(1).masked_fill(~mask_B11S, float("-inf"))


def looped_bias_by_example(
    bias: ConditionalAttentionBias, conditioner: TaskConditioner, task_ids_B: Tensor, mask_B11S: Tensor
) -> Tensor:
    """The attention bias as the published code has it: a block-diagonal matrix per example."""
    side = bias.blocks_Ls.shape[1]
    z_Bk = conditioner.z_Tk[task_ids_B]  # type: ignore[index]
    gamma_B1s, beta_B1s = (z_Bk @ bias.generator.weight.T + bias.generator.bias).unsqueeze(1).chunk(2, dim=-1)  # type: ignore[operator, union-attr]
    values_BLs = (1 + gamma_B1s) * bias.blocks_Ls + beta_B1s
    M_BSS = torch.stack([diagonal_of(values_Ls.split(side)) for values_Ls in values_BLs])
    return M_BSS.unsqueeze(1).masked_fill(~mask_B11S, float("-inf"))


def diagonal_of(blocks: Sequence[Tensor]) -> Tensor:
    """The block-diagonal matrix of blocks, of which the last may be cut off."""
    return torch.block_diag(*(block[:, : len(block)] for block in blocks))


def gather_against_loop(size: Size, repeats: int) -> dict[str, float]:
    """Forward + backward of loops over tasks, and of the plain LayerNorm, relative to the gather."""
    factory = GeneratorFactory("linear", len(TASKS), 64)
    norm = ConditionalLayerNorm(size.width, eps=1e-12, form="scale_and_bias", generators=factory)
    bias = ConditionalAttentionBias(max_length=size.length, block_side=16, form="vector", generators=factory)
    conditioner = TaskConditioner(len(TASKS), 64)
    parts = nn.ModuleDict({"norm": norm, "bias": bias, "conditioner": conditioner})
    reset_conditional(parts, 0, "bench", 0.02)
    for generator in (norm.generator, bias.generator):
        nn.init.normal_(generator.weight)  # type: ignore[arg-type]
    x_BSD = torch.randn(size.batch, size.length, size.width, requires_grad=True)
    task_ids_B = torch.arange(size.batch) % len(TASKS)
    mask_B11S = torch.ones(size.batch, 1, 1, size.length, dtype=torch.bool)

    plain = nn.LayerNorm(size.width)
    tables: dict[str, dict[str, Callable[[], Tensor]]] = {
        "LayerNorm": {
            "gather": lambda: norm(x_BSD, conditioner(task_ids_B)),
            "loop over tasks": lambda: looped(norm, conditioner, x_BSD, task_ids_B),
            "plain": lambda: plain(x_BSD),
        },
        "attention bias": {
            "gather": lambda: bias(conditioner(task_ids_B), mask_B11S, dtype=torch.float32),
            "loop over tasks": lambda: looped_bias(bias, conditioner, task_ids_B, mask_B11S),
            "loop over examples": lambda: looped_bias_by_example(bias, conditioner, task_ids_B, mask_B11S),
        },
    }
    ratios: dict[str, float] = {}
    for part, forwards in tables.items():
        outputs = {name: forward() for name, forward in forwards.items()}
        gradient = torch.randn_like(outputs["gather"])
        for name, output in outputs.items():
            assert name == "plain" or (output - outputs["gather"]).abs().max() <= 1e-4, f"{part}: {name} differs"
        passes = {name: lambda one=forward: one().backward(gradient) for name, forward in forwards.items()}  # type: ignore[misc]  # noqa: B023
        found = medians(passes, 4 * repeats)
        ratios |= {f"{part}, {name}": value / found["gather"] for name, value in found.items() if name != "gather"}
    return ratios


def uncertainty_step(size: Size, repeats: int) -> dict[str, float]:
    """Time of scoring T x batch candidates and training batch of them, in steps that train all of the encoder."""
    batch = batch_of(size, size.batch)
    whole, frozen = model_of(size, MODULES), model_of(size, MODULES, frozen=True)
    with torch.no_grad():
        kept_ND = frozen.trunk(batch).flatten(0, 1)

    def behind_trunk() -> TaskBatch:
        """States are kept by token and gathered for every batch, as the loader of a run does."""
        states_BSD = kept_ND[torch.arange(len(kept_ND))].view(*batch.input_ids_BS.shape, -1)
        return replace(batch, trunk_BSD=states_BSD)

    def train(model: MultiTaskEncoder, one: TaskBatch) -> None:
        model(one).logits_BC[:, 0].sum().backward()

    def score(model: MultiTaskEncoder, make: Callable[[], TaskBatch]) -> None:
        """In evaluation mode, as a run scores: of the last layer, only what the pooler reads is computed."""
        model.eval()
        with torch.no_grad():
            for _ in range(len(TASKS)):
                model(make())
        model.train()

    arms: dict[str, tuple[MultiTaskEncoder, Callable[[], TaskBatch] | None, Callable[[], TaskBatch]]] = {
        "plain step": (whole, None, lambda: batch),
        "uncertainty step": (whole, lambda: batch, lambda: batch),
        "plain, half frozen": (frozen, None, lambda: batch),
        "half frozen": (frozen, lambda: batch, lambda: batch),
        "kept trunk": (frozen, behind_trunk, lambda: batch),
        "kept, no dropout": (frozen, behind_trunk, behind_trunk),
    }

    def step(name: str) -> Callable[[], None]:
        model, candidates, chosen = arms[name]

        def run() -> None:
            if candidates is not None:
                score(model, candidates)
            train(model, chosen())

        return run

    found = medians({name: step(name) for name in arms}, repeats)
    ratios = {name: value / found["plain step"] for name, value in found.items()}
    return ratios | {"(T+3)/3": (len(TASKS) + 3) / 3, "goal: half of it": (len(TASKS) + 3) / 6}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time conditional modules.")
    parser.add_argument("--quick", action="store_true", help="a smaller encoder")
    parser.add_argument("--repeats", type=int, default=7, help="timings per arm; the median counts (default 7)")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    size = Size(128, 4, 18, 32) if arguments.quick else Size(384, 6, 32, 64)
    repeats = arguments.repeats
    tables: dict[str, Any] = {
        "overhead of modules": overhead(size, repeats),
        "loop over tasks / gather": gather_against_loop(size, repeats),
        f"loop over tasks / gather, {PAPER}": gather_against_loop(PAPER, repeats),
        "uncertainty step": uncertainty_step(size, repeats),
    }
    print(f"{size}, {len(TASKS)} tasks, torch {torch.__version__}, one thread, processor time, {repeats} repeats")
    for title, table in tables.items():
        print(title)
        for name, value in table.items():
            print(f"  {name:36} {value:6.2f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"size": str(size), **tables}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
