"""Writes one task's sub-network as a Hugging Face folder: a stock class where it computes the same, else with code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import distmoe
from distmoe.checkpoint.export_decoder import CODE_FILES as DECODER_FILES
from distmoe.checkpoint.export_decoder_task import decoder_task
from distmoe.checkpoint.export_folder import CARD, VERSION_KEY, check_target, new_export
from distmoe.checkpoint.export_hf import (
    CODE_FILES,
    check_exportable,
    exported_config,
    write_code,
)
from distmoe.checkpoint.export_tokenizer import read_tokenizer, special_tokens, write_tokenizer
from distmoe.checkpoint.hf_folder import write_model
from distmoe.checkpoint.key_tables import to_hf
from distmoe.checkpoint.model_card import task_card
from distmoe.checkpoint.run_files import find_tokenizer
from distmoe.checkpoint.stored_model import StoredModel
from distmoe.checkpoint.subnetwork import SubNetwork, cut_task
from distmoe.models.build import MultiTaskModel
from distmoe.models.config import ModelConfig
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.models.shape import EncoderShape
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec

SELF_CONTAINED = "DistmoeForSequenceClassification"


@dataclass(frozen=True)
class TaskExport:
    """What :func:`export_task` wrote.

    Attributes:
        folder: The export.
        architecture: Class of transformers, or the one that is written with it.
        network: What was cut, with reasons and counts.
    """

    folder: Path
    architecture: str
    network: SubNetwork


def export_task(
    checkpoint: Path | str, out: Path | str, task: str, *, tokenizer: Path | str | None = None
) -> TaskExport:
    """Writes the sub-network of one task of a checkpoint, on one process.

    Args:
        checkpoint: A folder ``step_N`` of a run.
        out: Folder to write; an older export in it is replaced.
        task: Name of the task.
        tokenizer: Tokenizer folder; None: the run's.

    Raises:
        CheckpointError: If the checkpoint is incomplete or damaged, the tokenizer is not found, or ``out`` holds
            something that is not an export.
        DataError: If the checkpoint has no such task.
    """
    out = Path(out)
    check_target(out)
    stored = StoredModel.read(checkpoint)
    check_exportable(stored.model)
    task_id = stored.tasks.id_of(task)
    tokenizer_folder = find_tokenizer(stored.folder, stored.manifest.config) if tokenizer is None else Path(tokenizer)
    return write_task_export(
        out,
        stored.rebuild(),
        config=stored.model,
        tasks=stored.tasks,
        grouping=stored.grouping,
        task_id=task_id,
        tokenizer_folder=tokenizer_folder,
        metrics=stored.evaluations,
        title=f"{task}, from {stored.title}",
        prompt=stored.prompt,
    )


def write_task_export(
    out: Path,
    model: MultiTaskModel,
    *,
    config: ModelConfig,
    tasks: TaskSet,
    grouping: TaskGrouping,
    task_id: int,
    tokenizer_folder: Path | None,
    metrics: Mapping[str, Any],
    title: str,
    prompt: str | None = None,
) -> TaskExport:
    """As :func:`export_task`, from a whole, single-process model.

    Args:
        out: Folder to write.
        model: All experts of all task groups, float32.
        config: Section ``model`` that it was built with.
        tasks: The run's tasks.
        grouping: Who shares which routed layer.
        task_id: The task.
        tokenizer_folder: Tokenizer to write with it; None: no tokenizer.
        metrics: Evaluations by name, for the model card.
        title: Heading of the model card.
        prompt: Template of the prompts of generation tasks.
    """
    spec = tasks[task_id]
    tokenizer = None
    if tokenizer_folder is not None:
        tokenizer = read_tokenizer(tokenizer_folder, vocab_size=model.shape.vocab_size)
    if isinstance(model, MultiTaskDecoder):
        special = special_tokens(tokenizer)
        network, values, tensors = decoder_task(
            model, config=config, tasks=tasks, grouping=grouping, task_id=task_id, special_tokens=special,
            prompt=prompt,
        )  # fmt: skip
    else:
        network = cut_task(model, config=config, tasks=tasks, grouping=grouping, task_id=task_id)
        if network.is_stock:
            values, tensors = _stock(network, model.shape, config, spec)
        else:
            values, tensors = _self_contained(network, model, config, spec)
    architecture = values["architectures"][0]
    card = task_card(title=title, spec=spec, architecture=architecture, reasons=network.reasons, metrics=metrics,
                     prompt=prompt, num_parameters=sum(tensor.numel() for tensor in tensors.values()))  # fmt: skip
    with new_export(out) as draft:
        write_model(draft, config=values, tensors=tensors)
        if not network.is_stock:
            write_code(draft, DECODER_FILES if isinstance(model, MultiTaskDecoder) else CODE_FILES)
        if tokenizer is not None:
            # A decoder is padded as its tokenizer says; an encoder's position table begins with the first real token.
            side = None if isinstance(model, MultiTaskDecoder) else "right"
            write_tokenizer(tokenizer, draft, max_length=model.shape.max_positions, padding_side=side)
        (draft / CARD).write_text(card, encoding="utf-8")
    return TaskExport(out, architecture, network)


def _self_contained(
    network: SubNetwork, model: MultiTaskEncoder, config: ModelConfig, spec: TaskSpec
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    values = exported_config(
        model,
        config=config,
        tasks=TaskSet((spec,)),
        routed_entries=network.routed_layers,
        conditional=network.conditional,
    )
    values["intermediate_size"] = network.width or model.shape.intermediate_size
    values |= {"default_task": spec.name} | _label_values(spec)
    named = {
        name if name.startswith("heads.") else f"distmoe.{name}": value.contiguous()
        for name, value in network.tensors.items()
    }
    return values, named


def _stock(
    network: SubNetwork, shape: EncoderShape, config: ModelConfig, spec: TaskSpec
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """BERT where positions begin at 0, else RoBERTa, whose pooler is a part of its classification head."""
    family = "bert" if shape.position_offset == 0 else "roberta"
    hf = to_hf(network.tensors, shape.num_layers)
    weight_CD, bias_C = network.tensors["heads.weight"][0], network.tensors["heads.bias"][0]
    pooler = {part: hf.pop(f"pooler.dense.{part}") for part in ("weight", "bias")}
    tensors = {f"{family}.{name}": value for name, value in hf.items()}
    if family == "bert":
        tensors |= {f"bert.pooler.dense.{part}": value for part, value in pooler.items()}
        tensors |= {"classifier.weight": weight_CD, "classifier.bias": bias_C}
    else:
        tensors |= {f"classifier.dense.{part}": value for part, value in pooler.items()}
        tensors |= {"classifier.out_proj.weight": weight_CD, "classifier.out_proj.bias": bias_C}
    values = _stock_config(family, network.width, shape, config, spec)
    return values, {name: value.contiguous().clone() for name, value in tensors.items()}


def _stock_config(family: str, width: int, shape: EncoderShape, config: ModelConfig, spec: TaskSpec) -> dict[str, Any]:
    return {
        "architectures": ["BertForSequenceClassification" if family == "bert" else "RobertaForSequenceClassification"],
        "model_type": family,
        "dtype": "float32",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": width,
        "hidden_act": shape.activation,
        "max_position_embeddings": shape.max_positions + shape.position_offset,
        "type_vocab_size": shape.num_token_types,
        "pad_token_id": shape.pad_token_id,
        "layer_norm_eps": shape.layer_norm_eps,
        "initializer_range": config.init_std,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "classifier_dropout": config.dropout,
        **_label_values(spec),
        # What tools/predict.py reads; transformers keeps keys that it does not know.
        "tasks": [row | {"num_outputs": spec.num_outputs} for row in TaskSet((spec,)).to_json()],
        VERSION_KEY: distmoe.__version__,
    }


def _label_values(spec: TaskSpec) -> dict[str, Any]:
    """What transformers makes of logits: the classes, or, of a regression, one number under the task's name."""
    labels = list(spec.labels) or [spec.name]
    return {
        "problem_type": "regression" if spec.is_regression else "single_label_classification",
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
