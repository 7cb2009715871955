"""The task groups that a trained model suggests, without training: similarities, partitions, a recipe section.

Where tasks have layers of their own, every routed layer is compared on the probe set, with the states that each task
group itself brings there, so the layers above need not be shared. Where they share all of them, every layer is compared
by how each task's own examples use it (:mod:`distmoe.structure.usage`). A deeper layer's partition is sought inside the
task groups of the shallower one: a tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from distmoe.errors import CheckpointError, ConfigError
from distmoe.models.comparison import Comparison, compared_features
from distmoe.models.layer_plan import routed_layers
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.parallel.env import read_env
from distmoe.structure.frontier import Frontier
from distmoe.structure.propose import propose
from distmoe.structure.search import check_threshold
from distmoe.structure.similarity import Similarity
from distmoe.tasks import TaskSet
from distmoe.tasks.grouping import TaskGroup
from distmoe.training.agreement import Agreement
from distmoe.training.config import RunConfig
from distmoe.training.from_checkpoint import load_checkpoint
from distmoe.training.run_data import encode, open_sources
from distmoe.training.structural.probe import ProbeSet
from distmoe.training.structural.usage import config_of_folder, is_hf_folder, pretrained_model, usage_by_layer


@dataclass(frozen=True)
class LayerFinding:
    """One routed layer.

    Attributes:
        layer: Of the model.
        members: The checkpoint's task groups there, without tasks that were not asked for.
        similarity: Of the members; None where there is one.
        partition: What the grouping rule makes of them.
    """

    layer: int
    members: tuple[TaskGroup, ...]
    similarity: Similarity | None
    partition: tuple[TaskGroup, ...]


@dataclass(frozen=True)
class Finding:
    """What a model suggests.

    Attributes:
        tasks: All tasks of the checkpoint.
        layers: Per compared layer, shallow to deep.
        measure: What a similarity is, in words.
        is_routed: Whether tasks had layers of their own.
    """

    tasks: TaskSet
    layers: tuple[LayerFinding, ...]
    measure: str
    is_routed: bool

    def recipe(self) -> str:
        """Section of a recipe with the proposed grouping; of a model without routed layers, also which to route."""
        partitions = [[[self.tasks[task].name for task in own] for own in layer.partition] for layer in self.layers]
        section: dict[str, Any] = {"structure": {"grouping": partitions}}
        if not self.is_routed:
            routed = {"layers": [layer.layer for layer in self.layers], "experts_per_task_group": 1}
            section = {"model": {"moe": routed}} | section
        return yaml.safe_dump(section, sort_keys=False, default_flow_style=None, width=120)


def examine(
    source: Path, *, names: Sequence[str] | None, threshold: float, num_examples: int, data: Path | None = None
) -> Finding:
    """Compares the tasks of a model; one process.

    Args:
        source: A folder ``step_N``, whose run's data must be there, or a Hugging Face BERT or RoBERTa folder.
        names: Tasks to look at; None: all.
        threshold: See :func:`distmoe.structure.search.find_partition`.
        num_examples: Size of the probe set.
        data: Folder of task folders; for a Hugging Face folder only.

    Raises:
        DistmoeError: If a task is unknown, data is missing, or there is nothing to compare.
    """
    check_threshold(threshold)
    if not source.is_dir():
        raise ConfigError(
            "there is no such folder",
            got=source,
            expected="a folder runs/NAME/checkpoints/step_N, or a Hugging Face folder of a BERT or RoBERTa",
            remedy="correct the path",
        )
    if is_hf_folder(source):
        config = config_of_folder(source, data, names, num_examples=num_examples)
        return _by_usage(pretrained_model(config), config, names, threshold=threshold, num_examples=num_examples)
    if data is not None:
        raise ConfigError(
            "a checkpoint's own run says where its data is",
            got=f"--data {data} with {source}",
            expected="--data with a Hugging Face folder only",
            remedy="remove --data",
        )
    loaded = load_checkpoint(source)
    tasks, grouping = loaded.stored.tasks, loaded.stored.grouping
    config, model = loaded.config, loaded.model
    if not isinstance(model, MultiTaskEncoder):
        raise CheckpointError(
            "only layers of encoders can be compared",
            got=f"{source} with model.family={config.model.family}",
            expected="model.family=encoder",
            remedy="choose a checkpoint of an encoder",
        )
    if all(len(partition) == 1 for partition in grouping.layers):
        return _by_usage(model, config, names, threshold=threshold, num_examples=num_examples)
    wanted = _ids_of(tasks, names)
    probe = _probe(config, num_examples)
    found: list[LayerFinding] = []
    parents: tuple[TaskGroup, ...] = (wanted,)
    for index, layer in enumerate(routed_layers(config.model.moe, model.shape.num_layers)):
        members = tuple(sorted(filter(None, (_only(own, wanted) for own in grouping.layers[index]))))
        similarity = _similarity(model, layer, members, probe) if len(members) > 1 else None
        parents = _partition(index, members, similarity, parents, threshold)
        found.append(LayerFinding(layer, members, similarity, parents))
    return Finding(tasks, tuple(found), "CKA of the task groups' own layers on the same sequences", is_routed=True)


def _only(task_group: TaskGroup, wanted: TaskGroup) -> TaskGroup:
    return tuple(task for task in task_group if task in wanted)


def _by_usage(
    model: MultiTaskEncoder, config: RunConfig, names: Sequence[str] | None, *, threshold: float, num_examples: int
) -> Finding:
    tasks = open_sources(config).tasks
    wanted = _ids_of(tasks, names)
    similarities = usage_by_layer(model, wanted, _probe(config, num_examples))
    members: tuple[TaskGroup, ...] = tuple((task,) for task in wanted)
    routed = routed_layers(config.model.moe, model.shape.num_layers)
    found: list[LayerFinding] = []
    parents: tuple[TaskGroup, ...] = (wanted,)
    for index, layer in enumerate(routed or range(model.shape.num_layers)):
        parents = _partition(index, members, similarities[layer], parents, threshold)
        found.append(LayerFinding(layer, members, similarities[layer], parents))
    return Finding(
        tasks, tuple(found), "covariances of each task's own examples in the shared layer", is_routed=bool(routed)
    )


def _probe(config: RunConfig, num_examples: int) -> ProbeSet:
    data = encode(open_sources(config), config, env=read_env(), agreement=Agreement())
    return ProbeSet(data.encoded, num_examples=num_examples, seed=config.run.seed)


@torch.no_grad()
def _similarity(model: MultiTaskEncoder, layer: int, members: Sequence[TaskGroup], probe: ProbeSet) -> Similarity:
    """Each member's own path to the layer, on all sequences."""
    batches = [probe.batch(index) for index in range(probe.num_batches)]
    features = [
        torch.cat([compared_features(model.encoder, Comparison(batch, layer, own[:1]))[0] for batch in batches])
        for own in members
    ]
    return Similarity.from_features(torch.stack(features))


def _partition(
    index: int,
    members: Sequence[TaskGroup],
    similarity: Similarity | None,
    parents: Sequence[TaskGroup],
    threshold: float,
) -> tuple[TaskGroup, ...]:
    """The rule inside every parent; members of several parents keep to the parent of their first task."""
    result: list[TaskGroup] = []
    for parent in parents:
        places = [place for place, own in enumerate(members) if own[0] in parent]
        if similarity is None or len(places) < 2:
            result += [members[place] for place in places]
            continue
        own_values = Similarity.from_values(similarity.values()[np.ix_(places, places)])
        frontier = Frontier(index, tuple(members[place] for place in places))
        merges = propose(frontier, own_values, threshold=threshold).merges
        joined = {member for merge in merges for member in merge.members}
        result += [merge.result for merge in merges]
        result += [members[place] for place in places if members[place] not in joined]
    return tuple(sorted(result))


def _ids_of(tasks: TaskSet, names: Sequence[str] | None) -> TaskGroup:
    unknown = [name for name in names or () if name not in tasks.names]
    if unknown or len(set(names or tasks.names)) < 2:
        raise ConfigError(
            "these tasks cannot be compared",
            got=", ".join(names or tasks.names),
            expected=f"two or more of {', '.join(tasks.names)}",
            remedy="correct --tasks",
        )
    return tuple(sorted(tasks.id_of(name) for name in names)) if names else tuple(range(len(tasks)))
