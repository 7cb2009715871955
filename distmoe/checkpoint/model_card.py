"""The model card (README.md) of an export."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import distmoe
from distmoe.data.indexed.tokens import fill_prompt
from distmoe.models.decoder_shape import DecoderShape
from distmoe.models.shape import ModelShape
from distmoe.moe.config import MoEConfig
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec

_HEADER = """\
---
library_name: transformers
pipeline_tag: {pipeline}
tags: [distmoe, mixture-of-experts, multi-task]
---
"""

_USE = """\
## Use

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
inputs = tokenizer({texts}, return_tensors="pt")
logits = model(**inputs, task="{task}").logits
```

`task` is a name or a list of one name per row; `task_ids` takes numbers. The code that is loaded stands in this folder
(`modeling_distmoe.py`, `configuration_distmoe.py`) and needs torch and transformers only.
"""


_USE_DECODER = """\
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER{trust})
tokenizer = AutoTokenizer.from_pretrained(FOLDER{trust})
inputs = tokenizer({prompt}, {plain}return_tensors="pt")
ids = model.generate(**inputs, {task}max_new_tokens=20, do_sample=False)
print(tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
```
"""

_TASK_OF_A_CALL = """
`task` is a name; `task_ids` takes one number per row. The code that is loaded stands in this folder
(`modeling_distmoe_decoder.py` and what it imports) and needs torch and transformers only.
"""


_USE_TASK = """\
## Use

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(FOLDER{trust})
tokenizer = AutoTokenizer.from_pretrained(FOLDER{trust})
logits = model(**tokenizer({texts}, return_tensors="pt")).logits
```
"""


def model_card(
    *,
    title: str,
    shape: ModelShape,
    moe: MoEConfig | None,
    routed_layers: tuple[int, ...],
    tasks: TaskSet,
    grouping: TaskGrouping,
    num_parameters: int,
    metrics: Mapping[str, Any],
    prompt: str | None = None,
) -> str:
    """Returns the text of the card.

    Args:
        title: Name of the run and step.
        shape: Of the model.
        moe: Configuration of the routed layers; None for a dense model.
        routed_layers: Their indices.
        tasks: The run's tasks.
        grouping: Who shares which routed layer.
        num_parameters: Of the export.
        metrics: An evaluation (``split``, ``macro``, ``tasks``: name -> ``metric``, ``score``, ``examples``), or
            several by name; empty: the card says that there are none.
        prompt: Template of the prompts of generation tasks.
    """
    first = tasks[0]
    texts = '"first text", "second text"' if first.pair else '"a text"'
    if isinstance(shape, DecoderShape):
        use = _use_decoder(first, prompt, trust=", trust_remote_code=True", task=f'task="{first.name}", ')
        use += _TASK_OF_A_CALL
    else:
        use = _USE.format(texts=texts, task=first.name)
    kind = "decoder" if isinstance(shape, DecoderShape) else "encoder"
    sections = [
        _header(first),
        f"# {title}\n",
        f"One {kind} for {len(tasks)} tasks, trained with distmoe {distmoe.__version__}.\n",
        _architecture(shape, moe, routed_layers, num_parameters),
        use,
        _tasks(tasks),
        _metrics(metrics),
        _grouping(tasks, grouping, routed_layers),
    ]
    return "\n".join(section for section in sections if section)


def task_card(
    *,
    title: str,
    spec: TaskSpec,
    architecture: str,
    reasons: Sequence[str],
    num_parameters: int,
    metrics: Mapping[str, Any],
    prompt: str | None = None,
) -> str:
    """Returns the text of the card of one task's sub-network.

    Args:
        title: Task, run and step.
        spec: The task.
        architecture: Class that loads it.
        reasons: Why it is not a stock class of transformers; empty: it is one.
        num_parameters: Of the export.
        metrics: As for :func:`model_card`; only the task's own rows are shown.
        prompt: Template of the prompts, if it is a generation task.
    """
    texts = '"first text", "second text"' if spec.pair else '"a text"'
    own = {
        split: {"split": value.get("split", split), "tasks": {spec.name: value["tasks"][spec.name]}}
        for split, value in metrics.items()
        if _is_evaluation(value) and spec.name in value["tasks"]
    }
    text = f"`{architecture}`, {num_parameters / 1e6:.1f} M parameters, trained with distmoe {distmoe.__version__}.\n"
    if reasons:
        text += "\nNot a stock class of transformers: " + "; ".join(reasons) + ".\n"
    trust = ", trust_remote_code=True" if reasons else ""
    use = _USE_TASK.format(texts=texts, trust=trust)
    if spec.predicts_tokens:
        use = _use_decoder(spec, prompt, trust=trust, task="")
    parts = (_header(spec), f"# {title}\n", text, use, _tasks(TaskSet((spec,))), _metrics(own))
    return "\n".join(parts)


def _use_decoder(spec: TaskSpec, prompt: str | None, *, trust: str, task: str) -> str:
    """A prompt has the tokenizer's special tokens, as in training; a text to be continued has none."""
    if spec.kind == "generation":
        shown, plain = fill_prompt(prompt or "{text}", "a text"), ""
    else:
        shown, plain = "a text", "add_special_tokens=False, "
    return _USE_DECODER.format(trust=trust, task=task, plain=plain, prompt=json.dumps(shown))


def _header(spec: TaskSpec) -> str:
    return _HEADER.format(pipeline="text-generation" if spec.predicts_tokens else "text-classification")


def _architecture(shape: ModelShape, moe: MoEConfig | None, routed: tuple[int, ...], num_parameters: int) -> str:
    if isinstance(shape, DecoderShape):
        heads = f"{shape.num_heads} heads on {shape.num_kv_heads} key-value heads, RMSNorm, SwiGLU, rotary positions"
    else:
        heads = f"{shape.num_heads} heads, {shape.norm}-LN"
    text = (
        f"{num_parameters / 1e6:.1f} M parameters; {shape.num_layers} layers, width {shape.hidden_size}, "
        f"{heads}, up to {shape.max_positions} tokens."
    )
    if moe is not None and moe.unit == "block":
        text += f" Layers {', '.join(map(str, routed))} are routed: {moe.experts_text}."
    elif moe is not None:
        text += (
            f" The feed-forward part of layers {', '.join(map(str, routed))} is routed: {moe.experts_text}, "
            f"{moe.top_k} per token, gate `{moe.gate.kind}`, combine `{moe.combine}`."
        )
        if moe.capacity_factor is not None:
            text += f"\nTraining limited experts to a capacity ({moe.capacity_factor}); this export drops no token."
    return text + "\n"


def _tasks(tasks: TaskSet) -> str:
    lines = ["## Tasks\n", "| task | type | texts | outputs |", "|---|---|---|---|"]
    for spec in tasks:
        outputs = ", ".join(spec.labels)
        if not outputs:
            outputs = "tokens" if spec.predicts_tokens else "a number"
        lines.append(f"| {spec.name} | {spec.kind} | {2 if spec.pair else 1} | {_cell(outputs)} |")
    return "\n".join(lines) + "\n"


def _metrics(metrics: Mapping[str, Any]) -> str:
    evaluations = [metrics] if "tasks" in metrics else [value for value in metrics.values() if _is_evaluation(value)]
    if not evaluations:
        return "## Scores\n\nThe run was not evaluated at this step.\n"
    lines = ["## Scores\n"]
    for evaluation in evaluations:
        split = evaluation.get("split", "evaluation")
        lines += [f"| task | metric | {split} | examples |", "|---|---|--:|--:|"]
        for name, row in evaluation["tasks"].items():
            lines.append(f"| {name} | {row.get('metric', '')} | {row['score']:.4f} | {row.get('examples', '')} |")
        if "macro" in evaluation:
            lines.append(f"| **mean** | | **{evaluation['macro']:.4f}** | |")
        lines.append("")
    return "\n".join(lines)


def _is_evaluation(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("tasks"), Mapping)


def _grouping(tasks: TaskSet, grouping: TaskGrouping, routed: tuple[int, ...]) -> str:
    if not routed:
        return ""
    lines = ["## Task groups\n", "Tasks of one task group share their experts.\n"]
    for layer, partition in zip(routed, grouping.layers, strict=True):
        named = (", ".join(tasks[task].name for task in task_group) for task_group in partition)
        lines.append(f"- layer {layer}: {' / '.join(named)}")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    short = text if len(text) <= 120 else text[:117] + "..."
    return short.replace("|", "\\|")
