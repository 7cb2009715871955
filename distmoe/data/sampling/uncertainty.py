"""Which candidates of a step are trained: the most uncertain ones. Pure functions over the whole pool.

Every rank computes the same choice from the same scores, so that no examples need to be sent.

Shape letters: N candidates.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from distmoe.data.sampling.order import ExampleOrder

ScoreKind = Literal["paper", "repo", "task_rank"]
Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

# The published code divides by log C + 1e-5.
_REPO_EPSILON = 1e-5


def take_distinct(order: ExampleOrder, first: int, count: int) -> tuple[Ids, int]:
    """Returns ``count`` different examples from place ``first`` on, and the place behind the last one looked at.

    Across the border of two epochs an example may come twice; trained twice in one step it would weigh double.
    ``count`` is at most the size of the task.
    """
    found, place = np.zeros(0, dtype=np.int64), first
    while len(found) < count:
        taken = order.take(place, count - len(found))
        place += len(taken)
        both = np.concatenate([found, taken])
        _, first_places = np.unique(both, return_index=True)
        found = both[np.sort(first_places)]
    return found, place


def adjust_scores(scores_N: Scores, task_ids_N: Ids, example_ids_N: Ids, num_classes_N: Ids, kind: ScoreKind) -> Scores:
    """Returns the scores by which candidates of different tasks are compared.

    Args:
        scores_N: ``entropy / log C`` of classifications, the declared score of regressions; +inf stays +inf.
        task_ids_N: Task of each candidate.
        example_ids_N: Example of each candidate; breaks ties inside a task.
        num_classes_N: C of each candidate's task; 1 for a regression, whose score has no log C.
        kind: ``paper``: as they are. (The paper divides by the largest task mean, which is one number per step and
            cannot change an order.) ``repo``: times the task's mean over the largest task mean. ``task_rank``: place
            inside the task, from 1 / n (least uncertain) to 1.
    """
    if kind == "paper":
        return scores_N
    adjusted_N = scores_N.copy()
    if kind == "repo":
        logs_N = np.log(np.maximum(num_classes_N, 2))
        adjusted_N = np.where(num_classes_N > 1, scores_N * logs_N / (logs_N + _REPO_EPSILON), scores_N)
        finite_N = np.isfinite(adjusted_N)  # what is not must be looked at, and says nothing about its task
        finite = {task: adjusted_N[finite_N & (task_ids_N == task)] for task in np.unique(task_ids_N).tolist()}
        means = {task: float(own.mean()) if len(own) else 0.0 for task, own in finite.items()}
        largest = max(means.values())
        for task, mean in means.items():
            adjusted_N[finite_N & (task_ids_N == task)] *= mean / largest if largest > 0 else 1.0
        return adjusted_N
    for task in np.unique(task_ids_N).tolist():
        places = np.flatnonzero(task_ids_N == task)
        # Ascending; of equal scores the smaller example id is the more uncertain one, as in the choice itself.
        ascending = places[np.lexsort((-example_ids_N[places], scores_N[places]))]
        adjusted_N[ascending] = np.arange(1, len(places) + 1) / len(places)
    return adjusted_N


def choose(scores_N: Scores, task_ids_N: Ids, example_ids_N: Ids, *, count: int, quota: int = 0) -> Ids:
    """Returns the places of the ``count`` largest scores, most uncertain first.

    Args:
        scores_N: Finite, or +inf for what must be looked at.
        task_ids_N: Task of each candidate; breaks ties.
        example_ids_N: Example of each candidate; breaks ties of one task.
        count: At most N.
        quota: Every task's best ``quota`` candidates are taken first; the rest are the best of what is left.
    """
    order = np.lexsort((example_ids_N, task_ids_N, -scores_N))
    if quota:
        tasks_in_order = task_ids_N[order]
        place_in_task = np.empty(len(order), dtype=np.int64)
        for task in np.unique(tasks_in_order).tolist():
            of_task = np.flatnonzero(tasks_in_order == task)
            place_in_task[of_task] = np.arange(len(of_task))
        order = order[np.argsort(place_in_task >= quota, kind="stable")]
    return order[:count]
