"""Exports a checkpoint as a Hugging Face folder that loads without distmoe.

Written: config.json (shape, task table, task groups, gates), model.safetensors, tokenizer, model card, and the two
files of ``checkpoint/hf`` as code for ``trust_remote_code``. Experts of a layer are stacked in global order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

import distmoe
from distmoe.checkpoint.export_conditional import exported_conditional
from distmoe.checkpoint.export_decoder import CODE_FILES as DECODER_FILES
from distmoe.checkpoint.export_decoder import decoder_tensors, decoder_values, prefixed
from distmoe.checkpoint.export_folder import CARD, VERSION_KEY, check_target, new_export
from distmoe.checkpoint.export_routed import exported_routed
from distmoe.checkpoint.export_tokenizer import read_tokenizer, special_tokens, write_tokenizer
from distmoe.checkpoint.hf_folder import write_model
from distmoe.checkpoint.model_card import model_card
from distmoe.checkpoint.run_files import find_tokenizer
from distmoe.checkpoint.stored_model import StoredModel
from distmoe.errors import CheckpointError
from distmoe.models.build import MultiTaskModel
from distmoe.models.config import ModelConfig
from distmoe.models.layer_plan import routed_layers
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.models.routed_layer import RoutedLayer
from distmoe.moe.layer import RoutedFeedForward
from distmoe.tasks import TaskGrouping, TaskSet

CODE_FILES = ("configuration_distmoe.py", "modeling_distmoe.py")


def export(checkpoint: Path | str, out: Path | str, *, tokenizer: Path | str | None = None) -> Path:
    """Writes the export of a checkpoint, on one process, and returns its folder.

    Args:
        checkpoint: A folder ``step_N`` of a run.
        out: Folder to write; an older export in it is replaced.
        tokenizer: Tokenizer folder; None: the run's.

    Raises:
        CheckpointError: If the checkpoint is incomplete or damaged, the tokenizer is not found, or ``out`` holds
            something that is not an export.
    """
    out = Path(out)
    check_target(out)
    stored = StoredModel.read(checkpoint)
    check_exportable(stored.model)
    tokenizer_folder = find_tokenizer(stored.folder, stored.manifest.config) if tokenizer is None else Path(tokenizer)
    return write_export(
        out,
        stored.rebuild(),
        config=stored.model,
        tasks=stored.tasks,
        grouping=stored.grouping,
        tokenizer_folder=tokenizer_folder,
        metrics=stored.evaluations,
        title=stored.title,
        prompt=stored.prompt,
    )


def write_export(
    out: Path,
    model: MultiTaskModel,
    *,
    config: ModelConfig,
    tasks: TaskSet,
    grouping: TaskGrouping,
    tokenizer_folder: Path | None,
    metrics: Mapping[str, Any],
    title: str = "distmoe",
    prompt: str | None = None,
) -> Path:
    """Writes the export of a whole, single-process model.

    The folder appears under its name when it is complete.

    Args:
        out: Folder to write.
        model: All experts of all task groups.
        config: Section ``model`` that it was built with.
        tasks: The run's tasks.
        grouping: Who shares which routed layer.
        tokenizer_folder: Tokenizer to write with it; None: no tokenizer.
        metrics: For the model card.
        title: Heading of the model card.
        prompt: Template of the prompts of generation tasks.

    Raises:
        CheckpointError: If ``out`` holds something that is not an export, or the tokenizer cannot be loaded or has
            more tokens than the model.
    """
    check_exportable(config)
    tokenizer = None
    if tokenizer_folder is not None:
        tokenizer = read_tokenizer(tokenizer_folder, vocab_size=model.shape.vocab_size)
    if isinstance(model, MultiTaskDecoder):
        tensors, routed_entries = decoder_tensors(model, config=config, grouping=grouping)
        tensors, special = prefixed(tensors), special_tokens(tokenizer)
        values = decoder_values(
            model,
            config=config,
            tasks=tasks,
            routed_entries=routed_entries,
            head=config.decoder.head,
            special_tokens=special,
            prompt=prompt,
        )
    else:
        tensors, routed_entries, conditional = exported_tensors(model, config=config, grouping=grouping)
        values = exported_config(
            model, config=config, tasks=tasks, routed_entries=routed_entries, conditional=conditional
        )
    card = model_card(
        title=title,
        shape=model.shape,
        moe=config.moe,
        routed_layers=routed_layers(config.moe, model.shape.num_layers),
        tasks=tasks,
        grouping=grouping,
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        metrics=metrics,
        prompt=prompt,
    )
    with new_export(out) as draft:
        write_model(draft, config=values, tensors=tensors)
        write_code(draft, DECODER_FILES if isinstance(model, MultiTaskDecoder) else CODE_FILES)
        if tokenizer is not None:
            # A decoder is padded as its tokenizer says; an encoder's position table begins with the first real token.
            side = None if isinstance(model, MultiTaskDecoder) else "right"
            write_tokenizer(tokenizer, draft, max_length=model.shape.max_positions, padding_side=side)
        (draft / CARD).write_text(card, encoding="utf-8")
    return out


def write_code(folder: Path, names: Sequence[str] = CODE_FILES) -> None:
    """Copies the self-contained modelling code into an export."""
    for name in names:
        source = files("distmoe.checkpoint.hf").joinpath(name)
        (folder / name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")


def exported_tensors(
    model: MultiTaskEncoder, *, config: ModelConfig, grouping: TaskGrouping
) -> tuple[dict[str, Tensor], list[dict[str, Any]], dict[str, Any] | None]:
    """Returns all tensors under their exported names, and the entries of routed layers and of conditional modules."""
    tensors: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if not is_routed(name)}
    conditional = None
    if config.conditional is not None:
        tables = exported_conditional(model.encoder, config.conditional)
        conditional = tables.entry
        for name in tables.replaced:
            del tensors[f"encoder.{name}"]
        tensors |= {f"encoder.{name}": value for name, value in tables.tensors.items()}
    entries: list[dict[str, Any]] = []
    for index, layer in enumerate(model.encoder.layers):
        if isinstance(layer, RoutedLayer):
            partition = [list(task_group) for task_group in grouping.layers[len(entries)]]
            entries.append({"layer": index, "unit": "block", "task_groups": partition})
            continue
        routed = layer.feed_forward
        if isinstance(routed, RoutedFeedForward):
            assert config.moe is not None
            prefix = f"encoder.layers.{index}.feed_forward"
            task_groups = grouping.layers[len(entries)]
            entry, of_layer = exported_routed(routed, moe=config.moe, layer=index, task_groups=task_groups)
            tensors |= {f"{prefix}.{name}": value for name, value in of_layer.items()}
            entries.append(entry)
    named = {name if name.startswith("heads.") else f"distmoe.{name}": value for name, value in tensors.items()}
    tensors = {name: value.detach().float().contiguous().clone() for name, value in named.items()}
    return tensors, entries, conditional


def exported_config(
    model: MultiTaskEncoder,
    *,
    config: ModelConfig,
    tasks: TaskSet,
    routed_entries: list[dict[str, Any]],
    conditional: dict[str, Any] | None,
) -> dict[str, Any]:
    """Returns the values of config.json."""
    shape = model.shape
    return {
        "architectures": ["DistmoeForSequenceClassification"],
        "auto_map": {
            "AutoConfig": "configuration_distmoe.DistmoeConfig",
            "AutoModel": "modeling_distmoe.DistmoeModel",
            "AutoModelForSequenceClassification": "modeling_distmoe.DistmoeForSequenceClassification",
        },
        "model_type": "distmoe",
        "dtype": "float32",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.intermediate_size,
        "hidden_act": shape.activation,
        "max_position_embeddings": shape.max_positions,
        "position_offset": shape.position_offset,
        "type_vocab_size": shape.num_token_types,
        "pad_token_id": shape.pad_token_id,
        "norm": shape.norm,
        "layer_norm_eps": shape.layer_norm_eps,
        "pooling": config.pooling,
        "initializer_range": config.init_std,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "tasks": [row | {"num_outputs": spec.num_outputs} for row, spec in zip(tasks.to_json(), tasks, strict=True)],
        "routed_layers": routed_entries,
        "conditional": conditional,
        VERSION_KEY: distmoe.__version__,
    }


def is_routed(name: str) -> bool:
    """Whether a parameter is exported in another form, by :mod:`distmoe.checkpoint.export_routed`."""
    return ".feed_forward.gate." in name or ".feed_forward.pools." in name


def check_exportable(config: ModelConfig) -> None:
    """Refuses what the exported modelling code cannot compute.

    Raises:
        CheckpointError: If examples are conditioned on random tasks.
    """
    if config.conditional is not None and config.conditional.condition_on == "random_task":
        raise CheckpointError(
            "an export does not know the numbers of training examples, from which this model draws their tasks",
            got="a checkpoint with model.conditional.condition_on=random_task",
            expected="condition_on=task",
            remedy="export a model that is no control",
        )
