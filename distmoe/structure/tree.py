"""Trees for pictures, and how well a learned partition agrees with a planted one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from distmoe.structure.similarity import Similarity
from distmoe.tasks.grouping import TaskGroup


@dataclass(frozen=True)
class Dendrogram:
    """Average-linkage tree of a similarity matrix.

    Attributes:
        joins: scipy's table ``[T - 1, 4]``: the two joined nodes, ``1 - similarity`` of the join, leaves below it.
        leaf_order: Members from left to right.
    """

    joins: np.ndarray
    leaf_order: tuple[int, ...]


def dendrogram(similarity: Similarity) -> Dendrogram:
    """The tree to draw. For pictures only: scipy leaves the order of ties open, decisions are made in ``search``."""
    distances = np.clip(1.0 - similarity.values(), 0.0, None)
    np.fill_diagonal(distances, 0.0)
    joins = linkage(squareform(distances), method="average", optimal_ordering=True)
    return Dendrogram(joins, tuple(int(leaf) for leaf in leaves_list(joins)))


def adjusted_rand_index(first: Iterable[TaskGroup], second: Iterable[TaskGroup]) -> float:
    """Agreement of two partitions of the same tasks: 1 if equal, around 0 by chance (Hubert and Arabie 1985)."""
    from sklearn.metrics import adjusted_rand_score  # a slow import that training does not need

    labels = [
        {task: label for label, task_group in enumerate(partition) for task in task_group}
        for partition in (first, second)
    ]
    tasks = sorted(labels[0])
    assert tasks == sorted(labels[1]), "partitions of different tasks"
    return float(adjusted_rand_score(*([table[task] for task in tasks] for table in labels)))


def family_agreement(families: Sequence[str | None], partition: Iterable[TaskGroup]) -> float | None:
    """Adjusted Rand index of a partition and the tasks' families (``TaskSpec.family``); None if a task has none."""
    if None in families:
        return None
    planted = [tuple(task for task, one in enumerate(families) if one == name) for name in dict.fromkeys(families)]
    return adjusted_rand_index(partition, planted)
