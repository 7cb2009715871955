"""What distmoe must know about one task, apart from its examples.

The same fields stand in the ``task.json`` of a local task folder::

    {"name": "stsb", "type": "regression", "pair": true, "metric": "pearson", "family": "similarity"}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from distmoe.errors import DataError

TaskKind = Literal["classification", "pair_classification", "regression"]
MetricName = Literal["accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman"]

_REGRESSION_METRICS = ("pearson", "spearman")


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task: a data set with a loss and a metric.

    Args:
        name: Unique name; becomes an integer id at the edge of the program and stays one inside.
        kind: Chooses the loss: cross-entropy for the two classifications, squared error for regression.
        metric: The score that evaluation reports and model selection averages.
        labels: Class names in the order of their ids; empty for regression.
        pair: Whether examples have two texts.
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
            if self.labels:
                raise DataError(
                    f"{where} is a regression with class labels",
                    got=f"{len(self.labels)} labels",
                    expected="no labels",
                    remedy='remove "labels", or change "type" to classification',
                )
            if self.metric not in _REGRESSION_METRICS:
                raise DataError(
                    f"{where} is a regression with a metric for classes",
                    got=self.metric,
                    expected=" | ".join(_REGRESSION_METRICS),
                    remedy='change "metric" in its task.json',
                )
        else:
            if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
                raise DataError(
                    f"{where} needs at least two different class names",
                    got=list(self.labels),
                    expected="two or more different names",
                    remedy='list them under "labels" in its task.json',
                )
            if self.metric in _REGRESSION_METRICS:
                raise DataError(
                    f"{where} is a classification with a metric for numbers",
                    got=self.metric,
                    expected="accuracy | f1 | macro_f1 | matthews",
                    remedy='change "metric" in its task.json',
                )
        if self.kind == "pair_classification" and not self.pair:
            object.__setattr__(self, "pair", True)

    @property
    def is_regression(self) -> bool:
        return self.kind == "regression"

    @property
    def num_outputs(self) -> int:
        """Width of the task's head: one per class, or one number."""
        return 1 if self.is_regression else len(self.labels)
