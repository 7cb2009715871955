"""Scores of predictions, computed by scikit-learn and scipy.

Every score is a finite number. Where the mathematical definition has none, the score is 0.0 and a warning says why:

====================================  =============================================================
input                                 score
====================================  =============================================================
Pearson, Spearman: a constant column  0.0 (correlation with a constant is undefined)
Matthews: one class only              0.0 (scikit-learn's definition)
F1: class neither present nor found   0.0
any prediction that is not finite     0.0
a loss of tokens that is not finite   0.0, also where no token is a target
====================================  =============================================================
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sklearn_metrics

from distmoe.log import get_logger
from distmoe.tasks import TaskSpec

_log = get_logger(__name__)


def score(spec: TaskSpec, predictions: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    """Returns the task's own metric, higher is better.

    Args:
        spec: Names the metric and, for ``f1``, the positive class.
        predictions: Class ids, or numbers for a regression: ``[examples]``.
        labels: In the same form.

    Raises:
        NotImplementedError: If the metric is one of tokens or texts, or a new one without a branch here.
    """
    if not np.isfinite(predictions).all():
        bad = int((~np.isfinite(predictions)).sum())
        return _undefined(spec, f"{bad} of {len(predictions)} predictions are not finite")
    if spec.metric in ("pearson", "spearman"):
        return _correlation(spec, predictions, labels)
    predicted, true = predictions.astype(np.int64), labels.astype(np.int64)
    if spec.metric == "accuracy":
        return float(sklearn_metrics.accuracy_score(true, predicted))
    if spec.metric == "f1":
        positive = spec.positive_label
        if not ((true == positive).any() or (predicted == positive).any()):
            return _undefined(spec, f"class {spec.labels[positive]!r} neither occurs nor is predicted")
        return float(sklearn_metrics.f1_score(true == positive, predicted == positive, zero_division=0.0))
    if spec.metric == "macro_f1":
        # Mean over the classes that occur in labels or predictions: a class that a small split lacks costs nothing.
        return float(sklearn_metrics.f1_score(true, predicted, average="macro", zero_division=0.0))
    if spec.metric == "matthews":
        if len(np.unique(predicted)) < 2 or len(np.unique(true)) < 2:
            return _undefined(spec, "only one class is predicted or present")
        return float(sklearn_metrics.matthews_corrcoef(true, predicted))
    raise NotImplementedError(f"metric {spec.metric} of task {spec.name} is not computed from classes or numbers")


def relative_errors(
    spec: TaskSpec, predictions: NDArray[np.float64], labels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Error of every example in units that tasks share: of the best constant answer, the mean is 1.

    Classification: 1 for a wrong class, over the share of examples outside the most frequent one; where the metric is
    not accuracy, every class counts the same, however rare: who always answers with the frequent one has an accuracy,
    and no F1. Regression: squared error, over the variance of the labels. Labels that are all the same count as if one
    of them were another.

    Args:
        spec: Of a task whose answers are classes or numbers.
        predictions: As :func:`score` takes them, ``[examples]``.
        labels: In the same form.
    """
    if spec.is_regression:
        errors, constant = np.square(predictions - labels), float(labels.var())
    else:
        errors = (predictions != labels).astype(np.float64)
        _, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
        constant = 1 - counts.max() / len(labels)
        if spec.metric != "accuracy":
            errors *= len(labels) / (len(counts) * counts[class_of])
            constant = 1 - 1 / len(counts)
    return errors / (constant or 1 / len(labels))


def score_tokens(spec: TaskSpec, right: float, count: float, loss: float) -> float:
    """Returns the score of a task whose answers are tokens, higher is better.

    Args:
        spec: Names the metric: ``token_accuracy``, or ``inverse_perplexity`` = exp(-loss), the geometric mean of the
            probabilities of the target tokens.
        right: Target tokens that the model would have chosen, given the true tokens before them.
        count: Target tokens.
        loss: Mean cross-entropy over them.
    """
    if not np.isfinite(loss):
        return _undefined(spec, "it has no target token" if not count else "the loss is not finite")
    return right / count if spec.metric == "token_accuracy" else float(np.exp(-loss))


def macro(scores: Iterable[float]) -> float:
    """Mean of the tasks' scores: the one number that selects the best checkpoint."""
    values = list(scores)
    return float(np.mean(values)) if values else 0.0


def _correlation(spec: TaskSpec, predictions: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    if len(predictions) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return _undefined(spec, "predictions or labels are constant")
    function = stats.pearsonr if spec.metric == "pearson" else stats.spearmanr
    value = float(function(predictions, labels).statistic)
    # Differences below float64 resolution pass the range test above and still give 0/0.
    return value if np.isfinite(value) else _undefined(spec, "predictions or labels are nearly constant")


def _undefined(spec: TaskSpec, reason: str) -> float:
    _log.warning("%s of task %s is undefined, reported as 0.0: %s", spec.metric, spec.name, reason)
    return 0.0
