"""Tiny tokenized tasks and hand-made placements for the tests of loaders."""

import numpy as np

from distmoe.data.encoded import EncodedSplit, EncodedTasks
from distmoe.parallel.placement import HostClass, Placement, Span
from distmoe.tasks import TaskSet, TaskSpec


def tasks(count):
    return TaskSet(
        tuple(
            TaskSpec(name=f"t{i}", kind="classification", metric="accuracy", labels=("no", "yes")) for i in range(count)
        )
    )


def split(size, *, task=0, seed=0, types=True):
    """Example ``e`` of task ``t`` consists of the token ``1000 * (t + 1) + e``, 1 to 9 times."""
    lengths = np.random.default_rng([seed, task]).integers(1, 10, size).astype(np.int32)
    return EncodedSplit(
        input_ids_T=np.repeat(1000 * (task + 1) + np.arange(size), lengths).astype(np.int32),
        token_type_ids_T=np.ones(int(lengths.sum()), dtype=np.int8) if types else None,
        starts_N=np.cumsum([0, *lengths[:-1]], dtype=np.int64),
        lengths_N=lengths,
        labels_N=(np.arange(size) / 4).astype(np.float32),
        num_truncated=0,
    )


def encoded(sizes, eval_sizes=None):
    evaluation = tuple(split(size, task=task, seed=1) for task, size in enumerate(eval_sizes or sizes))
    train = tuple(split(size, task=task) for task, size in enumerate(sizes))
    return EncodedTasks(train=train, validation=evaluation, test=(None,) * len(sizes), pad_token_id=0)


def placement(classes):
    """``classes``: list of (number of ranks, tasks); ep_size 1, no routed layer is looked at by loaders."""
    hosts, first = [], 0
    for num_ranks, task_ids in classes:
        hosts.append(HostClass(tuple(range(first, first + num_ranks)), tuple(task_ids)))
        first += num_ranks
    span = Span(blocks=tuple(range(first)), task_groups=(0,))
    mode = "colocated" if len(classes) == 1 else "partitioned"
    return Placement(mode=mode, num_ranks=first, ep_size=1, layers=((span,),), host_classes=tuple(hosts))
