"""How well the layers of one task serve another: a relative similarity of tasks (``structure.learn.similarity``).

Features of layers that share their inputs look alike whatever they compute: what they pass through dominates. So the
question is put to the labels: the examples of a *target* task go through the layers of a *source* task, and a linear
readout is fitted to the target's labels. Its cross-validated R^2 says how much of what the target needs the source
computes (linear-probe transfer, as in Taskonomy, arXiv 1804.08328).

Of some targets more can be read than of others: R^2 counts in shares of what the best source reads. And an easy target
is served well by all sources, a source with few examples serves all targets badly. Neither says who belongs together,
so both are taken out: an affinity is what is left beyond a value per target and one per source. It is relative:
positive means better than such two tasks do on average, and within any set of tasks the mean is 0. Of three tasks
nothing is left: with six values and as many that are taken out, every affinity is 0.

Shape letters: S source tasks, T target tasks (the same tasks), N examples, D feature width, C label columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distmoe.errors import DataError

Floats = NDArray[np.float64]

FEWEST_TASKS = 4  # whose affinities can differ
MIN_EXAMPLES = 8  # per task: with fewer, what is left out of a fit is most of it
READABLE = 0.03  # R^2 of a target's best source below which it says as much about the probe as about the sources
# Relative to the features' mean eigenvalue. The best of them is taken for each pair alike.
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


def check_examples(counts: Sequence[int], names: Sequence[str]) -> None:
    """Refuses a probe set with too few examples of a task.

    Raises:
        DataError: Naming the task.
    """
    for name, count in zip(names, counts, strict=True):
        if count < MIN_EXAMPLES:
            raise DataError(
                f"the probe set holds too few examples of {name} to compare tasks by their labels",
                got=count,
                expected=f"at least {MIN_EXAMPLES} of each of {len(names)} tasks; 100 are usual",
                remedy="raise structure.learn.probe_examples, give the task more training examples, or set "
                "structure.learn.similarity=cka",
            )


def label_columns(labels_N: Floats, num_classes: int) -> Floats:
    """Centred label columns ``[N, C]``: one per class, or the value of a regression (``num_classes`` 0)."""
    columns_NC = labels_N[:, None] if num_classes == 0 else np.eye(num_classes)[labels_N.astype(np.int64)]
    return np.asarray(columns_NC - columns_NC.mean(axis=0), dtype=np.float64)


def readout_r2(features_ND: Floats, labels_NC: Floats) -> float:
    """Leave-one-out R^2 of the best ridge regression of centred labels on features.

    Closed form: the residual of example i, with i left out of the fit, is its residual over ``1 - h_i``, where h is the
    diagonal of the hat matrix, here with ``1 / N`` for the mean (Allen 1974, PRESS). Constant labels give 0.
    """
    total = float(np.square(labels_NC).sum())
    if total == 0.0:
        return 0.0
    num_examples = len(features_ND)
    centred_ND = features_ND - features_ND.mean(axis=0)
    values_N, basis_NN = np.linalg.eigh(centred_ND @ centred_ND.T)
    values_N = np.clip(values_N, 0.0, None)
    projected_NC, squares_NN = basis_NN.T @ labels_NC, np.square(basis_NN)
    scale = max(float(values_N.sum()) / min(features_ND.shape), np.finfo(np.float64).tiny)
    best = -np.inf
    for ridge in RIDGES:
        shrink_N = values_N / (values_N + ridge * scale)
        fitted_NC = basis_NN @ (shrink_N[:, None] * projected_NC)
        leverage_N = squares_NN @ shrink_N + 1.0 / num_examples
        residual_NC = (labels_NC - fitted_NC) / np.clip(1.0 - leverage_N, 1e-9, None)[:, None]
        best = max(best, 1.0 - float(np.square(residual_NC).sum()) / total)
    return best


def transfer_matrix(features_SND: Floats, task_ids_N: NDArray[np.int64], labels: Sequence[Floats]) -> Floats:
    """R^2 of every source for every target, ``[S, T]``.

    Args:
        features_SND: Features of all probe examples through each source's layers.
        task_ids_N: Target of each example, 0 .. T-1.
        labels: Per target, :func:`label_columns` of its examples, in their order.

    Raises:
        DataError: If a feature is not finite.
    """
    broken = np.flatnonzero(~np.isfinite(features_SND).all(axis=(1, 2)))
    if len(broken):
        raise DataError(
            "layers of tasks cannot be compared: they make numbers that are not finite",
            got=f"infinite or undefined features from the layers of {len(broken)} of {len(features_SND)} tasks",
            expected="finite numbers",
            remedy="look for weights or activations that overflowed; lower optimizer.lr, or train in bf16 or fp32",
        )
    places = [np.flatnonzero(task_ids_N == target) for target in range(len(labels))]
    return np.array([[readout_r2(features_ND[own], labels_NC) for own, labels_NC in zip(places, labels, strict=True)]
                     for features_ND in features_SND])  # fmt: skip


def affinity(transfer_ST: Floats) -> Floats:
    """What shares of R^2 are beyond a value per source and one per target: symmetric, zeros on the diagonal.

    The least-squares fit of both over all pairs of different tasks; the two directions of a pair are averaged.

    Args:
        transfer_ST: :func:`transfer_matrix`; its diagonal counts as a source of its target, too.
    """
    num_tasks = len(transfer_ST)
    readable_ST = np.clip(transfer_ST, 0.0, None)
    shares_ST = readable_ST / np.maximum(readable_ST.max(axis=0), READABLE)
    sources, targets = np.nonzero(~np.eye(num_tasks, dtype=bool))
    design = np.zeros((len(sources), 2 * num_tasks))
    rows = np.arange(len(sources))
    design[rows, sources] = 1.0
    design[rows, num_tasks + targets] = 1.0
    values = shares_ST[sources, targets]
    rest = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    left = np.zeros_like(shares_ST)
    left[sources, targets] = rest
    return (left + left.T) / 2
