#!/usr/bin/env python3
"""Scores exported models on files of examples. Uses transformers and scikit-learn alone: no distmoe, no code of a run.

python tools/score_export.py OUT/sst2 data/sst2/test.jsonl
python tools/score_export.py OUT/sst2 data/sst2/test.jsonl OUT/stsb data/stsb/test.jsonl     # pairs of export and file
python tools/score_export.py OUT data/sst2/test.jsonl --task sst2 --max-length 64 --limit 200

A line of a file is an example: {"text": ..., "text_pair": ..., "label": class name, class id or number}.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

BATCH = 32


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score exported distmoe models without distmoe.")
    parser.add_argument("pairs", nargs="+", type=Path, metavar="EXPORT DATA", help="an export and a file of examples")
    parser.add_argument("--task", help="task of an export with several")
    parser.add_argument("--max-length", type=int, help="longest sequence in tokens (default: the tokenizer's)")
    parser.add_argument("--limit", type=int, help="only the first examples of each file")
    parser.add_argument("--logits", type=Path, metavar="FOLDER", help="also write each task's logits as TASK.npy")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    arguments = parser.parse_args(argv)
    if arguments.limit is not None and arguments.limit < 1:
        parser.error(f"--limit {arguments.limit}: 1 or more")
    if len(arguments.pairs) % 2:
        return _fail("an export without a file", f"{len(arguments.pairs)} paths", "pairs: EXPORT DATA", "add the file")
    found = []
    try:
        for folder, file in zip(arguments.pairs[::2], arguments.pairs[1::2], strict=True):
            task = task_of(folder, arguments.task)
            examples = read(file, task, arguments.limit)
            found.append(score(folder, task, examples, arguments.max_length, arguments.logits))
    except RefusedError as refusal:
        return _fail(*refusal.args)
    if arguments.json:
        print(json.dumps(found))
        return 0
    for row in found:
        print(f"{row['task']:20} {row['metric']:9} {row['score']:.4f}  {row['examples']} examples, {row['class']}")
    return 0


class RefusedError(Exception):
    """What, got, expected, remedy."""


def task_of(folder: Path, name: str | None) -> dict[str, Any]:
    """Returns the entry of a task in an export's table.

    Args:
        folder: The export.
        name: Of the task; None: its only one.

    Raises:
        RefusedError: If the folder is no export, or has no such task with one answer per text.
    """
    try:
        listed = json.loads((folder / "config.json").read_text("utf-8"))["tasks"]
        tasks = {task["name"]: task for task in listed}
    except (OSError, ValueError, KeyError, TypeError):
        expected = "a folder whose config.json names tasks"
        raise RefusedError("not an exported model", folder, expected, "see tools/convert_to_hf.py") from None
    name = name or (next(iter(tasks)) if len(tasks) == 1 else None)
    if name not in tasks:
        raise RefusedError(f"{folder} does not have this task", name, " | ".join(tasks), "name one with --task")
    if tasks[name].get("kind") in ("generation", "language_modeling"):
        raise RefusedError(
            f"the answers of task {name} are texts, not classes or numbers",
            tasks[name]["kind"],
            "an export of an encoder",
            "score the checkpoint with tools/evaluate.py; tools/predict.py shows what the export answers",
        )
    return tasks[name]


def read(file: Path, task: dict[str, Any], limit: int | None) -> list[dict[str, Any]]:
    """Returns the examples of a file, one JSON object a line, each label as a number.

    Raises:
        RefusedError: If the file cannot be read, has no example, or a line is none of the task.
    """
    try:
        # Not splitlines: a text may hold other separators of lines than the one between examples.
        numbered = enumerate(file.read_text(encoding="utf-8").split("\n"), start=1)
        lines = [(number, line) for number, line in numbered if line.strip()]
    except (OSError, ValueError) as failure:
        raise RefusedError("the examples cannot be read", failure, "a file of JSON lines", "correct its path") from None
    if not lines[:limit]:
        what = f"{len(lines)} lines in {file}" + (f", --limit {limit}" if limit is not None else "")
        raise RefusedError("there is no example to score", what, "1 or more", "name a file with examples")
    return [_example(line, f"{file}, line {number}", task) for number, line in lines[:limit]]


def _example(line: str, where: str, task: dict[str, Any]) -> dict[str, Any]:
    names = ["text", *(["text_pair"] if task["pair"] else [])]
    try:
        example = json.loads(line)
        if all(isinstance(example[name], str) for name in names):
            return example | {"label": _label(example["label"], task)}
    except (ValueError, KeyError, TypeError):
        pass
    labels = f"one of {' | '.join(task['labels'])}, or its number" if task["labels"] else "a number"
    expected = f"a JSON object with {' and '.join(names)}, and label: {labels}"
    raise RefusedError(f"{where}: no example of task {task['name']}", line[:120], expected, "correct the line")


def score(
    folder: Path, task: dict[str, Any], examples: list[dict[str, Any]], max_length: int | None, logits: Path | None
) -> dict[str, Any]:
    """Runs one model over examples and returns its score by the task's own metric."""
    # Without this, transformers asks the hub about a folder that is here. It is read at import.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import numpy as np
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    named = {"task": task["name"]} if model.config.model_type == "distmoe" else {}
    rows = []
    for first in range(0, len(examples), BATCH):
        batch = examples[first : first + BATCH]
        texts = [[example["text"] for example in batch]]
        texts += [[example["text_pair"] for example in batch]] if task["pair"] else []
        inputs = tokenizer(*texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**inputs, **named).logits[:, : task["num_outputs"]].float())
    logits_NC = torch.cat(rows).numpy()
    if logits is not None:
        logits.mkdir(parents=True, exist_ok=True)
        np.save(logits / f"{task['name']}.npy", logits_NC)
    return {
        "task": task["name"],
        "metric": task["metric"],
        "score": _metric(task, logits_NC, [example["label"] for example in examples]),
        "examples": len(examples),
        "class": type(model).__name__,
        "without distmoe": not any(name.partition(".")[0] == "distmoe" for name in sys.modules),
    }


def _label(value: Any, task: dict[str, Any]) -> float:
    """A class as its number; ValueError for what is none."""
    if value in task["labels"]:
        return float(task["labels"].index(value))
    number = float(value)
    if (task["labels"] and number not in range(len(task["labels"]))) or not math.isfinite(number):
        raise ValueError(value)
    return number


def _metric(task: dict[str, Any], logits_NC: Any, labels: list[float]) -> float:
    import numpy as np
    from scipy import stats
    from sklearn import metrics

    true = np.asarray(labels)
    if not task["labels"]:
        values = logits_NC[:, 0].astype(np.float64)
        if len(true) < 2 or np.ptp(values) == 0 or np.ptp(true) == 0:
            return 0.0  # undefined, and as distmoe reports it
        function = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[task["metric"]]
        value = float(function(values, true).statistic)
        return value if math.isfinite(value) else 0.0
    predicted = logits_NC.argmax(axis=1)
    match task["metric"]:
        case "accuracy":
            return float(metrics.accuracy_score(true, predicted))
        case "f1":
            positive = task["positive_label"]
            return float(metrics.f1_score(true == positive, predicted == positive, zero_division=0.0))
        case "macro_f1":
            return float(metrics.f1_score(true, predicted, average="macro", zero_division=0.0))
        case "matthews":
            return float(metrics.matthews_corrcoef(true, predicted))
    raise NotImplementedError(f"metric {task['metric']} of task {task['name']}")


def _fail(what: str, got: object, expected: object, remedy: str) -> int:
    print(f"error: {what}\n  got:      {got}\n  expected: {expected}\n  remedy:   {remedy}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
