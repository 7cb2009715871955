"""Writes the folder of a run that never ran: six tasks, two routed layers, three task groups in the deeper one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import yaml

TASKS = ("sst2", "mrpc", "stsb", "trec", "snli", "cola")
METRICS = ("accuracy", "f1", "pearson", "accuracy", "accuracy", "matthews")
GROUPING = [[[0, 1, 2, 3, 4, 5]], [[0, 3], [1, 2, 4], [5]]]
NUM_EXPERTS = 6


def train_line(step: int) -> dict:
    decay = math.exp(-step / 120)
    return {
        "step": step,
        "loss": 0.4 + decay + 0.06 * math.sin(step / 7),
        "task_loss": 0.38 + decay + 0.06 * math.sin(step / 7),
        "lr": 5e-4 * min(1.0, step / 30) * (1 - step / 400),
        "grad_norm": 0.5 + decay + 0.2 * math.cos(step / 11),
        "tokens_per_second": 8000 + 300 * math.sin(step / 23),
        "skipped_steps": 0,
        "auxiliary": {"balance": 1.0 + 0.3 * decay},
        "tasks": {name: {"loss": 0.3 + 0.1 * i + decay, "examples": 100} for i, name in enumerate(TASKS)},
        "routing": {
            f"layer_{layer}": routing(partition, decay) for layer, partition in zip((1, 3), GROUPING, strict=True)
        },
    }


def routing(partition: list[list[int]], decay: float) -> dict:
    """Experts are dealt to task groups equally; a task prefers one of its group's more and more."""
    share = NUM_EXPERTS // len(partition)
    tasks = {}
    for index, task_group in enumerate(partition):
        for task in task_group:
            counts = [0.0] * NUM_EXPERTS
            for slot in range(share):
                counts[index * share + slot] = 100 * (decay / share + (1 - decay) * (slot == task % share))
            tasks[TASKS[task]] = [round(count) for count in counts]
    return {"load": [sum(column) for column in zip(*tasks.values(), strict=True)], "tasks": tasks}


def evaluation_line(step: int, split: str = "validation") -> dict:
    rows = {
        name: {
            "metric": metric,
            "score": 0.9 - 0.05 * i - 0.5 * math.exp(-step / 100) + (0.02 if i == step // 100 % 6 else 0.0),
            "loss": None if (step, name) == (200, "cola") else 0.4 + math.exp(-step / 100),  # None: it was not finite
            "examples": 300,
        }
        for i, (name, metric) in enumerate(zip(TASKS, METRICS, strict=True))
    }
    macro = sum(row["score"] for row in rows.values()) / len(rows)
    return {"step": step, "evaluation": {"split": split, "macro": macro, "seconds": 1.0, "tasks": rows}}


def write_run(folder: Path, *, num_steps: int = 400, routed: bool = True) -> Path:
    folder.mkdir(parents=True)
    lines: list[dict] = []
    for step in range(10, num_steps + 1, 10):
        line = train_line(step)
        if not routed:
            del line["routing"]
        lines.append(line)
        if step % 100 == 0:
            lines.append(evaluation_line(step))
    lines.append(evaluation_line(num_steps, "test") | {"final": True})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"name": folder.name}}))
    (folder / "result.json").write_text(json.dumps({"ended": "Finished", "step": num_steps, "seconds": 312.4}))
    summary = {
        "num_ranks": 2,
        "tasks": [
            {
                "name": name,
                "metric": metric,
                "kind": "classification",
                "family": None,
                "train": 2000,
                "validation": 300,
                "test": 300,
                "truncated": 3 * i,
                "weight": 1 / 6,
            }
            for i, (name, metric) in enumerate(zip(TASKS, METRICS, strict=True))
        ],
        "routed_layers": [1, 3] if routed else [],
        "grouping": {"num_tasks": 6, "layers": GROUPING if routed else []},
        "parameters": {"total": 5_400_000, "active": 1_900_000, "per_rank": 3_600_000},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
