#!/usr/bin/env python3
"""Predicts with an exported model. Uses transformers alone: it runs where distmoe is not installed.

python tools/predict.py OUT                                      # which tasks does this model know?
python tools/predict.py OUT --task sst2 "a fine film"
python tools/predict.py OUT --task snli "A man sleeps." "Nobody is awake."      # a task of two texts
python tools/predict.py OUT --task sst2 --json "a fine film"
python tools/predict.py OUT --task reverse "drabo kiflu"                        # a language model: generates
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Predict with an exported distmoe model.")
    parser.add_argument("folder", type=Path, help="folder written by tools/convert_to_hf.py")
    parser.add_argument("text", nargs="*", help="one text, or two for a task of pairs")
    parser.add_argument("--task", help="name of the task; without it, the tasks are listed")
    parser.add_argument(
        "--max_new_tokens", type=int, default=64, help="longest answer of a language model (default: 64)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_intermixed_args(argv)
    listed = _read_tasks(arguments.folder)
    if listed is None:
        return _fail(
            "not an exported model",
            arguments.folder,
            "a folder whose config.json names tasks",
            "export one: python tools/convert_to_hf.py runs/NAME/checkpoints/step_N OUT",
        )
    if arguments.max_new_tokens < 1:
        return _fail("an answer needs room", f"--max_new_tokens {arguments.max_new_tokens}", "1 or more", "correct it")
    tasks = {task["name"]: task for task in listed}
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
    if _predicts_tokens(task):
        result = answer(arguments.folder, task, arguments.text[0], arguments.max_new_tokens)
    else:
        result = predict(arguments.folder, task, arguments.text)
    print(json.dumps(result) if arguments.json else _sentence(result))
    return 0


def predict(folder: Path, task: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """Returns the label with its probability and those of the other classes, or a number for a regression."""
    tokenizer, model, named = _load(folder, task, "AutoModelForSequenceClassification")
    import torch

    inputs = tokenizer(*texts, truncation=True, return_tensors="pt")
    with torch.no_grad():
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


def answer(folder: Path, task: dict[str, Any], text: str, max_new_tokens: int) -> dict[str, Any]:
    """Returns what the model says to a text, or how it continues it: greedily, at most up to its context."""
    tokenizer, model, named = _load(folder, task, "AutoModelForCausalLM")
    is_pair = task["kind"] == "generation"
    shown = (task.get("prompt") or "{text}").replace("{text}", text) if is_pair else text
    # Prompts have the tokenizer's special tokens, as in training; a text to be continued has none.
    inputs = tokenizer(shown, add_special_tokens=is_pair, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    room = model.config.max_position_embeddings - length
    if not length or room < 1:
        raise SystemExit(
            _fail("the text leaves nothing to generate", f"{length} tokens of prompt", f"1 to {length + room - 1}",
                  "give another text")
        )  # fmt: skip
    generated = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=min(max_new_tokens, room),
        do_sample=False,
        **named,
    )
    return {"task": task["name"], "text": tokenizer.decode(generated[0, length:], skip_special_tokens=True)}


def _load(folder: Path, task: dict[str, Any], auto_class: str) -> tuple[Any, Any, dict[str, str]]:
    """Tokenizer, model, and what names the task to it; the export of one task as a stock class knows no tasks."""
    # Without this, transformers asks the hub about a folder that is here. It is read at import.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
    return tokenizer, model, {"task": task["name"]} if model.config.model_type.startswith("distmoe") else {}


def _predicts_tokens(task: dict[str, Any]) -> bool:
    return task.get("kind") in ("generation", "language_modeling")


def _read_tasks(folder: Path) -> list[dict[str, Any]] | None:
    """The tasks of an export; None for a folder that is none."""
    try:
        tasks = json.loads((folder / "config.json").read_text(encoding="utf-8"))["tasks"]
        return tasks if all("name" in task and "labels" in task for task in tasks) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _describe(task: dict[str, Any]) -> str:
    if _predicts_tokens(task):
        return f"{task['name']}: one text -> " + ("a text" if task["kind"] == "generation" else "its continuation")
    outputs = " | ".join(task["labels"]) if task["labels"] else "a number"
    return f"{task['name']}: {'two texts' if task.get('pair') else 'one text'} -> {outputs}"


def _sentence(result: dict[str, Any]) -> str:
    if "text" in result:
        return str(result["text"])
    if "value" in result:
        return f"{result['task']}: {result['value']:.3f}"
    return f"{result['task']}: {result['label']} (probability {result['probability']:.3f})"


def _fail(what: str, got: object, expected: object, remedy: str) -> int:
    print(f"error: {what}\n  got:      {got}\n  expected: {expected}\n  remedy:   {remedy}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
