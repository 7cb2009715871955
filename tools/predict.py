#!/usr/bin/env python3
"""Predicts with an exported model. Uses transformers alone: it runs where distmoe is not installed.

python tools/predict.py OUT                                      # which tasks does this model know?
python tools/predict.py OUT --task sst2 "a fine film"
python tools/predict.py OUT --task snli "A man sleeps." "Nobody is awake."      # a task of two texts
python tools/predict.py OUT --task sst2 --json "a fine film"
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(description="Predict with an exported distmoe model.")
    parser.add_argument("folder", type=Path, help="folder written by tools/convert_to_hf.py")
    parser.add_argument("text", nargs="*", help="one text, or two for a task of pairs")
    parser.add_argument("--task", help="name of the task; without it, the tasks are listed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_intermixed_args()
    if not (arguments.folder / "config.json").is_file():
        return _fail(
            "not an exported model",
            arguments.folder,
            "a folder with config.json",
            "export one: python tools/convert_to_hf.py runs/NAME/checkpoints/step_N OUT",
        )
    tasks = {task["name"]: task for task in _read_tasks(arguments.folder)}
    if arguments.task is None:
        if arguments.text:
            return _fail("no task is named", "a text without --task", " | ".join(tasks), "add --task NAME")
        for task in tasks.values():
            print(_describe(task))
        return 0
    if arguments.task not in tasks:
        return _fail("the model does not know this task", arguments.task, " | ".join(tasks), "correct --task")
    task = tasks[arguments.task]
    expected = 2 if task.get("pair") else 1
    if len(arguments.text) != expected:
        return _fail(
            f"task {arguments.task} reads another number of texts",
            f"{len(arguments.text)} texts",
            f"{expected}",
            "quote each text",
        )
    result = predict(arguments.folder, task, arguments.text)
    print(json.dumps(result) if arguments.json else _sentence(result))
    return 0


def predict(folder: Path, task: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """Returns the label with its probability and those of the other classes, or a number for a regression."""
    # Without this, transformers asks the hub about a folder that is here. It is read at import.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    inputs = tokenizer(*texts, truncation=True, return_tensors="pt")
    with torch.no_grad():
        # The export of one task as a stock class of transformers knows no tasks.
        named = {"task": task["name"]} if model.config.model_type == "distmoe" else {}
        logits_C = model(**inputs, **named).logits[0, : task["num_outputs"]].float()
    if not task["labels"]:
        return {"task": task["name"], "value": logits_C[0].item()}
    probabilities_C = logits_C.softmax(0).tolist()
    best = max(range(len(probabilities_C)), key=probabilities_C.__getitem__)
    return {
        "task": task["name"],
        "label": task["labels"][best],
        "probability": probabilities_C[best],
        "probabilities": dict(zip(task["labels"], probabilities_C, strict=True)),
    }


def _read_tasks(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["tasks"]


def _describe(task: dict[str, Any]) -> str:
    outputs = " | ".join(task["labels"]) if task["labels"] else "a number"
    return f"{task['name']}: {'two texts' if task.get('pair') else 'one text'} -> {outputs}"


def _sentence(result: dict[str, Any]) -> str:
    if "value" in result:
        return f"{result['task']}: {result['value']:.3f}"
    return f"{result['task']}: {result['label']} (probability {result['probability']:.3f})"


def _fail(what: str, got: object, expected: object, remedy: str) -> int:
    print(f"error: {what}\n  got:      {got}\n  expected: {expected}\n  remedy:   {remedy}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
