#!/usr/bin/env python3
"""Scores a checkpoint on one process, whatever number of ranks and placement wrote it.

python tools/evaluate.py runs/demo/checkpoints/step_600 --split test
python tools/evaluate.py runs/demo/checkpoints/step_600 data.eval_batch_size=256    # overrides of the run's config
python tools/evaluate.py runs/demo/checkpoints/step_600 --compare runs/more/checkpoints/step_200    # one table
python tools/evaluate.py runs/demo/checkpoints/step_600 --shifts data.shifts.noise=[0.1,0.2]    # changed test texts
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

from distmoe.errors import ConfigError, DistmoeError
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


def score(folder: Path, *, split: str, overrides: list[str], with_shifts: bool = False) -> list[Evaluation]:
    """Builds the checkpoint's whole model and runs it over a split.

    Args:
        folder: Of the checkpoint.
        split: ``validation`` or ``test``.
        overrides: Of the run's configuration.
        with_shifts: Also over the test split under every shift of ``data.shifts``.

    Raises:
        DistmoeError: If the checkpoint is incomplete, or its data cannot be had.
    """
    loaded = load_checkpoint(folder, overrides if with_shifts else [*overrides, "data.shifts={}"])
    splits = [split, *(shift.split for shift in loaded.config.data.shifts.all)]
    if with_shifts and len(splits) == 1:
        raise ConfigError(
            "there is no shift to score under",
            got="--shifts, and data.shifts is empty",
            expected="one shift or more, of the run or as an override",
            remedy="for example data.shifts.noise=[0.1,0.2]",
        )
    sources = loaded.sources
    data = encode(sources, loaded.config, env=ALONE, agreement=Agreement())
    placement = place(loaded.stored.grouping, data.weights, num_ranks=1, ep_size=1, mode="colocated")
    on = device(ALONE)
    loader = data.eval_loader(placement, rank=0, pin_memory=on.type == "cuda")
    host = Host(loaded.model, on)
    return [
        evaluate(
            host,
            loader.batches(name),
            split=name,
            tasks=sources.tasks,
            sizes=data.split_sizes(name),
            answers=data.answers(name, loaded.model),
        )
        for name in splits
    ]


def table(folders: Sequence[Path], found: Sequence[Evaluation]) -> str:
    """One row per task of any checkpoint, one column per evaluation; a task that a checkpoint lacks has a dash.

    Args:
        folders: Checkpoint of each evaluation.
        found: The evaluations.
    """
    scores = [{row.task: row.score for row in one.tasks} for one in found]
    metrics = {row.task: row.metric for one in found for row in one.tasks}
    width = max(map(len, [*metrics, "macro"]))
    named = list(zip(folders, found, strict=True))
    lines = [f"[{number}] {folder} {one.split}" for number, (folder, one) in enumerate(named, start=1)]
    lines.append(f"{'task':{width}}  {'metric':9}" + "".join(f"  {f'[{n}]':>7}" for n in range(1, len(found) + 1)))
    for task, metric in metrics.items():
        cells = [f"{own[task]:7.4f}" if task in own else f"{'-':>7}" for own in scores]
        lines.append(f"{task:{width}}  {metric:9}  {'  '.join(cells)}")
    lines.append(f"{'macro':{width}}  {'':9}  {'  '.join(f'{one.macro:7.4f}' for one in found)}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score a checkpoint on one process.")
    parser.add_argument("checkpoint", type=Path, help="folder step_N of a run")
    parser.add_argument(
        "--split", choices=("validation", "test"), help="split to score (default: validation; with --shifts: test)"
    )
    parser.add_argument(
        "--shifts", action="store_true", help="the test split, and again under each shift of data.shifts, as a table"
    )
    parser.add_argument(
        "--compare",
        type=Path,
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="print a table with this checkpoint beside the first; may be given several times",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="in place of the run's values")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.shifts and arguments.split == "validation":
        parser.error("--shifts are of the test split")
    split = arguments.split or ("test" if arguments.shifts else "validation")
    folders, found = [], []
    try:
        for folder in (arguments.checkpoint, *arguments.compare):
            scored = score(folder, split=split, overrides=arguments.overrides, with_shifts=arguments.shifts)
            folders += [folder] * len(scored)
            found += scored
    except DistmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(folders, found) if len(found) > 1 else json.dumps(found[0].to_json(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
