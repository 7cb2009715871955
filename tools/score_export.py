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
    if len(arguments.pairs) % 2:
        return _fail("an export without a file", f"{len(arguments.pairs)} paths", "pairs: EXPORT DATA", "add the file")
    found = []
    for folder, file in zip(arguments.pairs[::2], arguments.pairs[1::2], strict=True):
        config = folder / "config.json"
        listed = json.loads(config.read_text("utf-8")).get("tasks") if config.is_file() else None
        if listed is None:
            expected = "a folder whose config.json names tasks"
            return _fail("not an exported model", folder, expected, "see tools/convert_to_hf.py")
        tasks = {task["name"]: task for task in listed}
        name = arguments.task or (next(iter(tasks)) if len(tasks) == 1 else None)
        if name not in tasks:
            return _fail(f"{folder} does not have this task", name, " | ".join(tasks), "name one with --task")
        if tasks[name].get("kind") in ("generation", "language_modeling"):
            return _fail(
                f"the answers of task {name} are texts, not classes or numbers",
                tasks[name]["kind"],
                "an export of an encoder",
                "score the checkpoint with tools/evaluate.py; tools/predict.py shows what the export answers",
            )
        found.append(score(folder, tasks[name], read(file, arguments.limit), arguments.max_length, arguments.logits))
    if arguments.json:
        print(json.dumps(found))
        return 0
    for row in found:
        print(f"{row['task']:20} {row['metric']:9} {row['score']:.4f}  {row['examples']} examples, {row['class']}")
    return 0


def read(file: Path, limit: int | None) -> list[dict[str, Any]]:
    """Returns the examples of a file, one JSON object a line."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [json.loads(line) for line in lines[:limit]]


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
        "score": _metric(task, logits_NC, [_label(example["label"], task) for example in examples]),
        "examples": len(examples),
        "class": type(model).__name__,
        "without distmoe": not any(name.partition(".")[0] == "distmoe" for name in sys.modules),
    }


def _label(value: Any, task: dict[str, Any]) -> float:
    return task["labels"].index(value) if value in task["labels"] else float(value)


def _metric(task: dict[str, Any], logits_NC: Any, labels: list[float]) -> float:
    import numpy as np
    from scipy import stats
    from sklearn import metrics

    true = np.asarray(labels)
    if not task["labels"]:
        function = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[task["metric"]]
        return float(function(logits_NC[:, 0].astype(np.float64), true).statistic)
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
