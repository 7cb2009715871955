"""Time of one whole training step, task-routed against dense, with equal active compute.

::

    python tools/bench/step_time.py                       # fp32 and bf16, 6 layers of width 384
    python tools/bench/step_time.py --batch 256 --json OUT.json

A step is forward, objective, backward, clipping and AdamW of the whole model on one process. AdamW also touches the
experts that got no token, so its cost grows with *total* parameters while the rest follows *active* ones: both columns
are printed. Protocol as in README.md: one thread, processor time, arms interleaved, medians, ratios to dense.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distmoe.config import build
from distmoe.data.batch import TaskBatch
from distmoe.models.build import MultiTaskModel, build_model
from distmoe.models.config import ModelConfig
from distmoe.models.shape import resolve_shape
from distmoe.moe.config import MoEConfig
from distmoe.parallel.process_groups import single_process
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec
from distmoe.training.objective import Objective

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NUM_TASKS = 8
ARMS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "task gate, E=8 k=1": {"num_experts": 8, "gate": {"kind": "task"}},
    "token gate, E=8 k=1": {"num_experts": 8, "gate": {"kind": "token"}},
    "token gate, E=8 k=2, half width": {"num_experts": 8, "top_k": 2, "gate": {"kind": "token"}},
    "token gate, E=64 k=1": {"num_experts": 64, "gate": {"kind": "token"}},
}


@dataclass
class Arm:
    """A model with its objective and optimizer, ready to step."""

    model: MultiTaskModel
    objective: Objective
    optimizer: torch.optim.AdamW

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def tasks() -> TaskSet:
    return TaskSet(
        tuple(
            TaskSpec(name=f"task{i}", kind="classification", metric="accuracy", labels=("no", "yes"))
            for i in range(NUM_TASKS)
        )
    )


def make_arm(moe: dict[str, Any] | None, args: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> Arm:
    values = {
        "hidden_size": args.width,
        "intermediate_size": 4 * args.width,
        "num_layers": args.layers,
        "num_heads": args.width // 32,
        "moe": None if moe is None else build(MoEConfig, moe).model_dump(),
    }
    config = build(ModelConfig, values)
    num_routed = 0 if moe is None else args.layers // 2
    grouping = TaskGrouping.one_group(NUM_TASKS, num_routed)
    model = build_model(
        config,
        shape=resolve_shape(config, vocab_size=args.vocabulary, pad_token_id=0),
        tasks=tasks(),
        grouping=grouping,
        hosting=single_process(grouping).hosting,
        seed=0,
    ).to(device, dtype)
    weights = None if config.moe is None else config.moe.losses
    objective = Objective(tasks(), grouping, weights=weights, device=device)
    return Arm(model, objective, torch.optim.AdamW(model.parameters(), lr=1e-4))


def make_batch(args: argparse.Namespace, device: torch.device) -> TaskBatch:
    """Mixed tasks, no padding."""
    rows, length = args.batch, args.length
    random = torch.Generator().manual_seed(0)
    return TaskBatch(
        input_ids_BS=torch.randint(1, args.vocabulary, (rows, length), generator=random),
        attention_mask_BS=torch.ones(rows, length, dtype=torch.bool),
        token_type_ids_BS=torch.zeros(rows, length, dtype=torch.int64),
        task_ids_B=torch.arange(rows) % NUM_TASKS,
        labels_B=torch.randint(0, 2, (rows,), generator=random).float(),
        loss_weights_B=torch.full((rows,), 1 / rows),
        example_ids_B=torch.arange(rows),
        example_mask_B=torch.ones(rows, dtype=torch.bool),
        token_index_T=torch.arange(rows * length),
    ).to(device)


def step(arm: Arm, batch: TaskBatch, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of (forward and backward, optimizer)."""
    start = clock()
    arm.objective(arm.model(batch), batch).total.backward()
    middle = clock()
    torch.nn.utils.clip_grad_norm_(arm.model.parameters(), 1.0)
    arm.optimizer.step()
    arm.optimizer.zero_grad(set_to_none=False)
    return middle - start, clock() - middle


def measure(args: argparse.Namespace, precision: str, device: torch.device) -> list[dict[str, Any]]:
    arms = {name: make_arm(moe, args, DTYPES[precision], device) for name, moe in ARMS.items()}
    batch = make_batch(args, device)
    clock = _clock(device)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for repeat in range(args.repeats + 1):
        for name, arm in arms.items():
            seconds = step(arm, batch, clock)
            if repeat:  # the first one warms up
                times[name].append(seconds)
    rows = []
    for name, arm in arms.items():
        passes, update = (statistics.median(values) for values in zip(*times[name], strict=True))
        total = statistics.median(a + b for a, b in times[name])
        rows.append(
            {
                "arm": name,
                "precision": precision,
                "parameters": arm.parameters,
                "passes": passes,
                "update": update,
                "total": total,
                "tokens_per_second": args.batch * args.length / total,
            }
        )
    return rows


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type == "cpu":
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


def print_table(rows: list[dict[str, Any]]) -> None:
    print("| arm | precision | parameters | forward + backward | whole step | tokens/s |")
    print("|---|---|--:|--:|--:|--:|")
    for row in rows:
        dense = next(r for r in rows if r["arm"] == "dense" and r["precision"] == row["precision"])
        print(
            f"| {row['arm']} | {row['precision']} | {row['parameters'] / 1e6:.1f} M | "
            f"{row['passes'] / dense['passes']:.2f} | {row['total'] / dense['total']:.2f} | "
            f"{row['tokens_per_second']:,.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=64, help="sequences per step")
    parser.add_argument("--length", type=int, default=64, help="tokens per sequence, no padding")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=30522)
    parser.add_argument("--precision", choices=[*DTYPES, "both"], default="both")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precisions = list(DTYPES) if args.precision == "both" else [args.precision]
    rows = [row for precision in precisions for row in measure(args, precision, device)]
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {where}, {args.batch} x {args.length} tokens, {args.repeats} repeats\n")
    print_table(rows)
    if args.json:
        args.json.write_text(json.dumps({"torch": torch.__version__, "device": where, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
