"""The task groups that a trained checkpoint suggests, without training: similarities, partitions, a recipe section.

Every routed layer is compared on the probe set with the states that each task group itself brings there, so the layers
above need not be shared. A deeper layer's partition is sought inside the task groups of the shallower one: a tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml

from distmoe.checkpoint.stored_model import StoredModel
from distmoe.config import build
from distmoe.errors import CheckpointError, ConfigError
from distmoe.models.comparison import Comparison, compared_features
from distmoe.models.layer_plan import routed_layers
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.parallel.env import read_env
from distmoe.structure.frontier import Frontier
from distmoe.structure.propose import propose
from distmoe.structure.similarity import Similarity
from distmoe.tasks import TaskSet
from distmoe.tasks.grouping import TaskGroup
from distmoe.training.agreement import Agreement
from distmoe.training.config import RunConfig
from distmoe.training.run_data import encode, open_sources
from distmoe.training.structural.probe import ProbeSet


@dataclass(frozen=True)
class LayerFinding:
    """One routed layer.

    Attributes:
        layer: Of the model.
        members: The checkpoint's task groups there.
        similarity: Of the members; None where there is one.
        partition: What the grouping rule makes of them.
    """

    layer: int
    members: tuple[TaskGroup, ...]
    similarity: Similarity | None
    partition: tuple[TaskGroup, ...]


@dataclass(frozen=True)
class Finding:
    """What a checkpoint suggests.

    Attributes:
        tasks: All tasks of the checkpoint.
        layers: Per routed layer, shallow to deep.
    """

    tasks: TaskSet
    layers: tuple[LayerFinding, ...]

    def recipe(self) -> str:
        """Section of a recipe with the proposed grouping."""
        partitions = [[[self.tasks[task].name for task in own] for own in layer.partition] for layer in self.layers]
        section = {"structure": {"grouping": partitions}}
        return yaml.safe_dump(section, sort_keys=False, default_flow_style=None, width=120)


def examine(checkpoint: Path, *, names: Sequence[str] | None, threshold: float, num_examples: int) -> Finding:
    """Compares the task groups of a checkpoint; one process.

    Args:
        checkpoint: A folder ``step_N``; the data of its run must be there.
        names: Tasks to look at; None: all.
        threshold: See :func:`distmoe.structure.search.find_partition`.
        num_examples: Size of the probe set.

    Raises:
        DistmoeError: If the checkpoint has no task groups to compare, a task is unknown, or data is missing.
    """
    stored = StoredModel.read(checkpoint)
    tasks, grouping = stored.tasks, stored.grouping
    if all(len(partition) == 1 for partition in grouping.layers):
        raise CheckpointError(
            f"{checkpoint} has no task groups that could be compared",
            got="a dense model" if not grouping.layers else "one task group at every routed layer",
            expected="tasks with layers of their own",
            remedy="train a while with structure.grouping=per_task, or use the recipe task_moe_learned",
        )
    wanted = _ids_of(tasks, names)
    config = build(RunConfig, stored.manifest.config)
    model = stored.rebuild()
    if not isinstance(model, MultiTaskEncoder):
        raise CheckpointError(
            "only layers of encoders can be compared",
            got=f"{checkpoint} with model.family={config.model.family}",
            expected="model.family=encoder",
            remedy="choose a checkpoint of an encoder",
        )
    data = encode(open_sources(config), config, env=read_env(), agreement=Agreement())
    probe = ProbeSet(data.encoded, num_examples=num_examples, seed=config.run.seed)
    numbers = routed_layers(config.model.moe, model.shape.num_layers)
    found: list[LayerFinding] = []
    parents: tuple[TaskGroup, ...] = (wanted,)
    for index, layer in enumerate(numbers):
        members = tuple(sorted(own for own in grouping.layers[index] if set(own) & set(wanted)))
        similarity = _similarity(model, layer, members, probe) if len(members) > 1 else None
        parents = _partition(index, members, similarity, parents, threshold)
        found.append(LayerFinding(layer, members, similarity, parents))
    return Finding(tasks, tuple(found))


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
    if unknown or (names is not None and len(set(names)) < 2):
        raise ConfigError(
            "these tasks cannot be compared",
            got=", ".join(names or ()),
            expected=f"two or more of {', '.join(tasks.names)}",
            remedy="correct --tasks",
        )
    return tuple(sorted(tasks.id_of(name) for name in names)) if names else tuple(range(len(tasks)))
