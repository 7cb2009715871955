"""Models whose tasks share every layer, compared by how each task's own examples use them; nothing is trained.

A dense checkpoint of distmoe, or any Hugging Face folder that ``model.pretrained`` takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from distmoe.checkpoint.import_hf import load_pretrained
from distmoe.config import build
from distmoe.data.batch import TaskBatch
from distmoe.errors import ConfigError, DataError
from distmoe.models.build import build_model
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.shape import EncoderShape, resolve_shape, shape_of_folder
from distmoe.structure.cka import MIN_EXAMPLES
from distmoe.structure.features import token_means
from distmoe.structure.similarity import Similarity
from distmoe.structure.usage import usage_similarity
from distmoe.tasks import TaskGrouping
from distmoe.tasks.grouping import TaskGroup
from distmoe.training.config import RunConfig
from distmoe.training.run_data import open_sources
from distmoe.training.structural.probe import ProbeSet

_MAX_LENGTH = 128


def is_hf_folder(path: Path) -> bool:
    """Whether a path is a model of transformers rather than a checkpoint of distmoe."""
    return (path / "config.json").is_file() and not (path / "manifest.json").is_file()


def config_of_folder(folder: Path, data: Path | None, names: Sequence[str] | None, *, num_examples: int) -> RunConfig:
    """A configuration that reads a folder's encoder and the tasks below ``data``.

    Of large tasks only so many examples are tokenized that the probe set still has a choice.

    Raises:
        ConfigError: If the tasks are not named, or the folder is of another family.
        CheckpointError: If the folder's ``config.json`` cannot be read.
    """
    if data is None:
        raise ConfigError(
            "a pretrained encoder does not say which tasks are to be compared",
            got=str(folder),
            expected="a folder of task folders, each with a task.json",
            remedy="add --data FOLDER, and --tasks NAME NAME ... to choose among its tasks",
        )
    shape = shape_of_folder(folder)
    if not isinstance(shape, EncoderShape):
        raise ConfigError(
            "only layers of encoders can be compared",
            got=f"{folder} of a decoder",
            expected="a BERT or RoBERTa folder",
            remedy="choose the folder of an encoder",
        )
    return build(
        RunConfig,
        {
            "model": {"pretrained": str(folder), "moe": None},
            "tasks": {"source": "local", "names": None if names is None else list(names)},
            "data": {
                "root": str(data),
                "max_length": min(_MAX_LENGTH, shape.max_positions),
                "max_train_examples": 4 * num_examples,
            },
        },
    )


def pretrained_model(config: RunConfig) -> MultiTaskEncoder:
    """The encoder of ``model.pretrained`` with fresh heads, which nothing here reads, in evaluation mode."""
    sources = open_sources(config)
    shape = resolve_shape(config.model, sources.vocab_size, sources.pad_token_id)
    assert isinstance(shape, EncoderShape), "other folders were refused"
    grouping = TaskGrouping(len(sources.tasks), ())
    model = build_model(
        config.model, shape=shape, tasks=sources.tasks, grouping=grouping, hosting=(), seed=config.run.seed
    )
    assert config.model.pretrained is not None
    load_pretrained(model, config.model.pretrained, config=config.model, seed=config.run.seed)
    return model.eval()


@torch.no_grad()
def usage_by_layer(model: MultiTaskEncoder, tasks: TaskGroup, probe: ProbeSet) -> tuple[Similarity, ...]:
    """Per layer of the model, how alike ``tasks`` use it, each on its own examples of the probe set.

    Raises:
        DataError: If a task has too few examples in the probe set.
    """
    found: list[tuple[Tensor, ...]] = []
    owners: list[Tensor] = []
    for index in range(probe.num_batches):
        batch = probe.batch(index)
        found.append(_features_by_layer(model, batch))
        owners.append(batch.task_ids_B)
    owner_N = torch.cat(owners)
    counts = {task: int((owner_N == task).sum()) for task in tasks}
    if min(counts.values()) < MIN_EXAMPLES:
        raise DataError(
            "a task has too few examples to be compared",
            got=f"{min(counts.values())} of the {len(probe)} examples of the probe set",
            expected=f"at least {MIN_EXAMPLES}",
            remedy="raise --examples, or leave the task out of --tasks",
        )
    return tuple(
        Similarity.from_values(usage_similarity([features_ND[owner_N == task] for task in tasks]))
        for features_ND in (torch.cat(parts) for parts in zip(*found, strict=True))
    )


def _features_by_layer(model: MultiTaskEncoder, batch: TaskBatch) -> tuple[Tensor, ...]:
    """Mean over tokens of every layer's output, ``[B, D]`` each; every sequence takes its own task's path."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, outputs: tuple[Tensor, object]) -> None:
        found.append(token_means(outputs[0], batch.attention_mask_BS))

    hooks = [layer.register_forward_hook(keep) for layer in model.encoder.layers]
    try:
        model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found)
