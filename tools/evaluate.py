#!/usr/bin/env python3
"""Scores a checkpoint on one process, whatever number of ranks and placement wrote it.

python tools/evaluate.py runs/demo/checkpoints/step_300 --split test
python tools/evaluate.py runs/demo/checkpoints/step_300 data.eval_batch_size=256    # overrides of the run's config
python tools/evaluate.py runs/demo/checkpoints/step_300 --compare runs/more/checkpoints/step_200    # one table
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from distmoe.errors import DistmoeError
from distmoe.models.build import MultiTaskModel
from distmoe.parallel.env import RankEnv, device
from distmoe.parallel.placement import place
from distmoe.training.agreement import Agreement
from distmoe.training.evaluate import Evaluation, evaluate
from distmoe.training.from_checkpoint import load_checkpoint
from distmoe.training.run_data import encode

ALONE = RankEnv(0, 1, 0, 1)


class Host:
    """A bare model where training has an engine."""

    def __init__(self, model: MultiTaskModel, on: torch.device) -> None:
        self.model, self.device = model.to(on), on

    def __call__(self, *inputs: Any) -> Any:
        return self.model(*inputs)

    def eval_mode(self) -> None:
        self.model.eval()

    def train_mode(self) -> None:
        """Nothing trains here."""


def score(folder: Path, *, split: str, overrides: list[str]) -> Evaluation:
    """Builds the checkpoint's whole model and runs it over a split.

    Raises:
        DistmoeError: If the checkpoint is incomplete, or its data cannot be had.
    """
    loaded = load_checkpoint(folder, overrides)
    sources = loaded.sources
    data = encode(sources, loaded.config, env=ALONE, agreement=Agreement())
    placement = place(loaded.stored.grouping, data.weights, num_ranks=1, ep_size=1, mode="colocated")
    on = device(ALONE)
    loader = data.eval_loader(placement, rank=0, pin_memory=on.type == "cuda")
    chosen: Any = split
    return evaluate(
        Host(loaded.model, on),
        loader.batches(chosen),
        split=split,
        tasks=sources.tasks,
        sizes=data.split_sizes(chosen),
        answers=data.answers(chosen, loaded.model),
    )


def table(folders: Sequence[Path], found: Sequence[Evaluation]) -> str:
    """One row per task of any checkpoint, one column per checkpoint; a task that a checkpoint lacks has a dash."""
    scores = [{row.task: row.score for row in one.tasks} for one in found]
    metrics = {row.task: row.metric for one in found for row in one.tasks}
    width = max(map(len, [*metrics, "macro"]))
    lines = [f"[{number}] {folder}" for number, folder in enumerate(folders, start=1)]
    lines.append(f"{'task':{width}}  {'metric':9}" + "".join(f"  {f'[{n}]':>7}" for n in range(1, len(folders) + 1)))
    for task, metric in metrics.items():
        cells = [f"{own[task]:7.4f}" if task in own else f"{'-':>7}" for own in scores]
        lines.append(f"{task:{width}}  {metric:9}  {'  '.join(cells)}")
    lines.append(f"{'macro':{width}}  {'':9}  {'  '.join(f'{one.macro:7.4f}' for one in found)}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score a checkpoint on one process.")
    parser.add_argument("checkpoint", type=Path, help="folder step_N of a run")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument(
        "--compare",
        type=Path,
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="print a table with this checkpoint beside the first; may be given several times",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args(argv)
    folders = [arguments.checkpoint, *arguments.compare]
    try:
        found = [score(folder, split=arguments.split, overrides=arguments.overrides) for folder in folders]
    except DistmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(folders, found) if arguments.compare else json.dumps(found[0].to_json(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
