#!/usr/bin/env python3
"""Exports every task of a checkpoint and compares each with the full model, on the run's own test texts.

python tools/check_export.py runs/nlu/checkpoints/step_1000 OUT --examples 200
python tools/check_export.py runs/nlu/checkpoints/step_1000 OUT data.root=DATA          # overrides of the run's config

The full model runs here. Each export, OUT/TASK, runs in one other process that imports transformers and cannot import
distmoe (tools/score_export.py): from texts to logits and scores, tokenizer included. Exit code 1: logits differ by more
than the tolerance, or a score differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmoe.checkpoint.export_folder import check_target
from distmoe.checkpoint.export_hf import check_exportable
from distmoe.checkpoint.export_task import TaskExport, write_task_export
from distmoe.checkpoint.run_files import find_tokenizer
from distmoe.data.collate import collate
from distmoe.data.encoded import ExampleStore
from distmoe.data.example import TaskExample
from distmoe.data.preprocess import encode_split
from distmoe.data.sources import Split
from distmoe.errors import CheckpointError, DistmoeError
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.tasks import TaskSpec
from distmoe.training.from_checkpoint import load_checkpoint
from distmoe.training.metrics import score
from distmoe.training.run_data import Sources

SCORER = Path(__file__).with_name("score_export.py")
BATCH = 32


@dataclass(frozen=True)
class Row:
    """One task's comparison.

    Attributes:
        spec: The task.
        export: What was written.
        num_examples: Texts that both read.
        difference: Largest absolute difference of a logit.
        full: Score of the full model.
        alone: Score that the other process computed.
    """

    spec: TaskSpec
    export: TaskExport
    num_examples: int
    difference: float
    full: float
    alone: float

    @property
    def kept(self) -> float:
        """Share of the full model's parameters that the export has."""
        whole, kept = (sum(column) for column in zip(*self.export.network.counts.values(), strict=True))
        return kept / whole


def compare(checkpoint: Path, out: Path, *, num_examples: int, overrides: Sequence[str] = ()) -> list[Row]:
    """Exports and compares every task.

    Args:
        checkpoint: A folder ``step_N``.
        out: Gets a folder per task.
        num_examples: Test texts per task; validation texts where a task has no test split.
        overrides: ``section.key=value`` over the run's configuration.

    Raises:
        DistmoeError: If the checkpoint is incomplete, its data cannot be had, or ``out`` holds something else.
    """
    loaded = load_checkpoint(checkpoint, overrides)
    stored, sources, model = loaded.stored, loaded.sources, loaded.model
    check_exportable(stored.model)
    if not isinstance(model, MultiTaskEncoder):
        raise CheckpointError(
            "texts with one answer each are compared",
            got=f"{checkpoint} with model.family=decoder",
            expected="a checkpoint of an encoder",
            remedy="export the task with tools/convert_to_hf.py --task and compare what it generates",
        )
    tokenizer = find_tokenizer(checkpoint, stored.manifest.config)
    out.mkdir(parents=True, exist_ok=True)
    exports, files, logits, labels = [], [], [], []
    for task, spec in enumerate(sources.tasks):
        check_target(out / spec.name)
        exports.append(
            write_task_export(
                out / spec.name, model, config=stored.model, tasks=stored.tasks, grouping=stored.grouping, task_id=task,
                tokenizer_folder=tokenizer, metrics=stored.evaluations, title=f"{spec.name}, from {stored.title}",
            )
        )  # fmt: skip
        split: Split = "test" if "test" in sources.source.splits(spec.name) else "validation"
        examples = sources.source.examples(spec.name, split)[:num_examples]
        files.append(_write(out / f"{spec.name}.jsonl", examples))
        logits.append(_logits(model, sources, examples, task=task, max_length=loaded.config.data.max_length))
        labels.append(np.asarray([example.label for example in examples], dtype=np.float64))
    found = _scored_alone(exports, files, out / "logits", max_length=loaded.config.data.max_length)
    rows = []
    for spec, export, full_NC, label_N, alone in zip(sources.tasks, exports, logits, labels, found, strict=True):
        alone_NC = np.load(out / "logits" / f"{spec.name}.npy")
        predicted = full_NC[:, 0] if spec.is_regression else full_NC.argmax(axis=1)
        rows.append(
            Row(
                spec,
                export,
                len(label_N),
                float(np.abs(full_NC - alone_NC).max()),
                score(spec, predicted.astype(np.float64), label_N),
                alone["score"],
            )
        )
    return rows


@torch.no_grad()
def _logits(
    model: MultiTaskEncoder, sources: Sources, examples: Sequence[TaskExample], *, task: int, max_length: int
) -> NDArray[np.float32]:
    """The full model's logits [N, C] of a task's examples, tokenized and collated as in training."""
    store = ExampleStore.join((encode_split(examples, sources.tokenizer, max_length=max_length),))
    rows: list[Tensor] = []
    for chunk in _chunks(len(examples)):
        weights = np.ones(len(chunk), dtype=np.float32)
        batch = collate(store, chunk, weights, pad_token_id=sources.pad_token_id)
        batch = replace(batch, task_ids_B=torch.full_like(batch.task_ids_B, task))
        rows.append(model(batch).logits_BC[:, : sources.tasks[task].num_outputs])
    logits_NC: NDArray[np.float32] = torch.cat(rows).numpy()
    return logits_NC


def _chunks(count: int) -> Iterator[NDArray[np.int64]]:
    for first in range(0, count, BATCH):
        yield np.arange(first, min(first + BATCH, count))


def _write(path: Path, examples: Sequence[TaskExample]) -> Path:
    rows = [{"text": one.text, "text_pair": one.text_pair, "label": one.label} for one in examples]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _scored_alone(
    exports: Sequence[TaskExport], files: Sequence[Path], logits: Path, *, max_length: int
) -> list[dict[str, Any]]:
    """Runs the exports in an isolated process: no PYTHONPATH, no current folder, not distmoe."""
    pairs = [str(path) for export, file in zip(exports, files, strict=True) for path in (export.folder, file)]
    command = [sys.executable, "-I", str(SCORER), *pairs, "--max-length", str(max_length), "--json"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--logits", str(logits)], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert all(row["without distmoe"] for row in found), "the other process has imported distmoe"
    return found


def table(rows: Sequence[Row]) -> list[str]:
    """One line per task, and the largest difference of all."""
    width = max(len(row.spec.name) for row in rows)
    lines = [
        f"{'task':{width}}  {'class':30}  {'kept':>6}  {'texts':>5}  {'difference':>10}  {'metric':8}  {'full':>7}  "
        f"{'export':>7}"
    ]
    for row in rows:
        lines.append(
            f"{row.spec.name:{width}}  {row.export.architecture.replace('ForSequenceClassification', 'ForSeqCls.'):30}"
            f"  {100 * row.kept:5.1f}%  {row.num_examples:5d}  {row.difference:10.1e}  {row.spec.metric:8}  "
            f"{row.full:7.4f}  {row.alone:7.4f}"
        )
    return [*lines, f"largest difference of a logit: {np.max([row.difference for row in rows]):.1e}"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare every task's export with the full model.")
    parser.add_argument("checkpoint", type=Path, help="folder runs/NAME/checkpoints/step_N")
    parser.add_argument("out", type=Path, help="gets a folder per task")
    parser.add_argument("--examples", type=int, default=200, help="test texts per task (default: 200)")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest difference of a logit (default: 1e-5)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="in place of the run's values")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.examples < 1:
        parser.error(f"--examples {arguments.examples}: nothing would be compared; 1 or more")
    try:
        rows = compare(
            arguments.checkpoint, arguments.out, num_examples=arguments.examples, overrides=arguments.overrides
        )
    except DistmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(table(rows)))
    # Not "larger than": NaN, which compares with nothing, must not pass.
    wrong = [row for row in rows if not (row.difference <= arguments.tolerance and abs(row.full - row.alone) <= 1e-6)]
    for row in wrong:
        print(f"{row.spec.name}: the export is not the full model's task", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
