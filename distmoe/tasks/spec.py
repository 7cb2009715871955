"""What distmoe must know about one task, apart from its examples.

The same fields stand in the ``task.json`` of a local task folder::

    {"name": "stsb", "type": "regression", "pair": true, "metric": "pearson", "family": "similarity"}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from distmoe.errors import DataError

TaskKind = Literal["classification", "pair_classification", "regression", "generation", "language_modeling"]
MetricName = Literal[
    "accuracy",
    "f1",
    "macro_f1",
    "matthews",
    "pearson",
    "spearman",
    "token_accuracy",
    "inverse_perplexity",
    "bleu",
    "chrf",
    "rouge_l",
    "exact_match",
    "exact_match_final_number",
]

_CLASS_METRICS = ("accuracy", "f1", "macro_f1", "matthews")
_REGRESSION_METRICS = ("pearson", "spearman")
# Higher is better for every metric; 1 / perplexity is the geometric mean of the probabilities of the target tokens.
TOKEN_METRICS = ("token_accuracy", "inverse_perplexity")
# Scores of generated text against references; reading them needs generation, not only the loss.
TEXT_METRICS = ("bleu", "chrf", "rouge_l", "exact_match", "exact_match_final_number")


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task: a data set with a loss and a metric.

    Args:
        name: Unique name; becomes an integer id at the edge of the program and stays one inside.
        kind: Chooses the loss: cross-entropy for the two classifications, squared error for regression, cross-entropy
            of the next token for ``generation`` (text -> target: on the target's tokens) and ``language_modeling``
            (plain text: on all tokens).
        metric: The score that evaluation reports and model selection averages.
        labels: Class names in the order of their ids; only for classifications.
        pair: Whether examples have two texts; never where tokens are predicted.
        family: Free label of related tasks; ``structure.grouping: family`` groups by it.
        description: A sentence about the task, read by the ``task_description`` gate.
        positive_label: For ``f1``: index of the class whose F1 is reported.

    Raises:
        DataError: If kind, labels and metric contradict each other.
    """

    name: str
    kind: TaskKind
    metric: MetricName
    labels: tuple[str, ...] = ()
    pair: bool = False
    family: str | None = None
    description: str | None = None
    positive_label: int = 1

    def __post_init__(self) -> None:
        where = f"task {self.name!r}"
        if self.kind not in get_args(TaskKind):
            raise DataError(
                f"{where} has an unknown type",
                got=self.kind,
                expected=" | ".join(get_args(TaskKind)),
                remedy='correct "type" in its task.json',
            )
        if self.metric not in get_args(MetricName):
            raise DataError(
                f"{where} has an unknown metric",
                got=self.metric,
                expected=" | ".join(get_args(MetricName)),
                remedy='correct "metric" in its task.json',
            )
        if self.kind == "regression":
            self._refuse_labels("regression")
            self._check_metric("regression with a metric for classes", _REGRESSION_METRICS)
        elif self.predicts_tokens:
            self._refuse_labels(self.kind)
            allowed = TOKEN_METRICS if self.kind == "language_modeling" else (*TOKEN_METRICS, *TEXT_METRICS)
            self._check_metric(f"{self.kind} task with a metric for other tasks", allowed)
            if self.pair:
                raise DataError(
                    f"{where} predicts tokens from one text",
                    got=f"a second text with type {self.kind}",
                    expected="one text per example",
                    remedy='join both under one column, and remove "pair" from its task.json, or the key text_pair '
                    "below tasks.hub",
                )
        else:
            if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
                raise DataError(
                    f"{where} needs at least two different class names",
                    got=list(self.labels),
                    expected="two or more different names",
                    remedy='list them under "labels" in its task.json',
                )
            self._check_metric("classification with a metric for numbers", _CLASS_METRICS)
            if self.metric == "f1" and self.positive_label not in range(len(self.labels)):
                raise DataError(
                    f"{where} has no class of the number that f1 counts as positive",
                    got=f"positive_label {self.positive_label!r}, {len(self.labels)} labels",
                    expected=f"0 to {len(self.labels) - 1}",
                    remedy='correct "positive_label" in its task.json',
                )
        if self.kind == "pair_classification" and not self.pair:
            object.__setattr__(self, "pair", True)

    @property
    def is_regression(self) -> bool:
        return self.kind == "regression"

    @property
    def predicts_tokens(self) -> bool:
        """Whether the task's answers are tokens, and its loss therefore one per target token."""
        return self.kind in ("generation", "language_modeling")

    @property
    def is_scored_by_text(self) -> bool:
        """Whether evaluation must generate: the metric compares texts."""
        return self.metric in TEXT_METRICS

    @property
    def num_outputs(self) -> int:
        """Width of the task's head: one per class, or one number; 0 where answers are tokens of the vocabulary."""
        if self.predicts_tokens:
            return 0
        return 1 if self.is_regression else len(self.labels)

    def _refuse_labels(self, kind: str) -> None:
        if self.labels:
            raise DataError(
                f"task {self.name!r} is a {kind} with class labels",
                got=f"{len(self.labels)} labels",
                expected="no labels",
                remedy='remove "labels", or change "type" to classification',
            )

    def _check_metric(self, problem: str, allowed: tuple[str, ...]) -> None:
        if self.metric not in allowed:
            raise DataError(
                f"task {self.name!r} is a {problem}",
                got=self.metric,
                expected=" | ".join(allowed),
                remedy='change "metric" in its task.json',
            )
