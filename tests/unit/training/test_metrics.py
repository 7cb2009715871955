import logging

import numpy as np
import pytest

from distmoe.tasks import TaskSpec
from distmoe.tasks.spec import _CLASS_METRICS, _REGRESSION_METRICS
from distmoe.training.metrics import macro, relative_errors, score


def spec(metric: str, num_labels: int = 2, positive_label: int = 1) -> TaskSpec:
    if metric in ("pearson", "spearman"):
        return TaskSpec(name="t", kind="regression", metric=metric)
    labels = tuple(f"label{i}" for i in range(num_labels))
    return TaskSpec(name="t", kind="classification", metric=metric, labels=labels, positive_label=positive_label)


def points(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


# Predicted 1 1 0 0 1, true 1 0 0 1 1: TP 2, FP 1, FN 1, TN 1.
PREDICTED, TRUE = points(1, 1, 0, 0, 1), points(1, 0, 0, 1, 1)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("accuracy", 3 / 5),
        ("f1", 2 * 2 / (2 * 2 + 1 + 1)),
        ("macro_f1", (2 / 3 + 2 * 1 / (2 * 1 + 1 + 1)) / 2),
        ("matthews", (2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5),
    ],
)
def test_hand_worked_confusion_table(metric: str, value: float) -> None:
    assert score(spec(metric), PREDICTED, TRUE) == pytest.approx(value)


def test_a_metric_without_a_formula_is_refused_and_not_taken_for_another() -> None:
    of_texts = TaskSpec(name="t", kind="generation", metric="bleu")
    with pytest.raises(NotImplementedError, match="metric bleu of task t"):
        score(of_texts, PREDICTED, TRUE)


@pytest.mark.parametrize("metric", [*_CLASS_METRICS, *_REGRESSION_METRICS])
def test_every_metric_of_classes_and_numbers_has_a_formula(metric: str) -> None:
    assert score(spec(metric), TRUE, TRUE) == pytest.approx(1.0)


def test_f1_is_of_the_positive_label() -> None:
    assert score(spec("f1", positive_label=0), PREDICTED, TRUE) == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))


def test_macro_f1_leaves_out_classes_that_occur_nowhere() -> None:
    assert score(spec("macro_f1", num_labels=5), points(0, 1), points(0, 1)) == 1.0


def test_spearman_reads_ranks_and_pearson_values() -> None:
    predicted, true = points(1, 2, 3, 100), points(1, 2, 3, 4)
    assert score(spec("spearman"), predicted, true) == pytest.approx(1.0)
    assert score(spec("pearson"), predicted, true) == pytest.approx(np.corrcoef(predicted, true)[0, 1])


@pytest.mark.parametrize(
    ("metric", "predicted", "true"),
    [
        ("pearson", points(2, 2, 2), points(1, 2, 3)),
        ("spearman", points(1, 2, 3), points(4, 4, 4)),
        ("pearson", points(1), points(1)),
        ("matthews", points(1, 1, 1), points(0, 1, 1)),
        ("f1", points(0, 0), points(0, 0)),
        ("accuracy", points(np.nan, 1), points(1, 1)),
        ("pearson", points(np.inf, 1, 2), points(1, 2, 3)),
    ],
)
def test_undefined_scores_are_zero_with_a_warning(
    metric: str, predicted: np.ndarray, true: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="distmoe"):
        assert score(spec(metric), predicted, true) == 0.0
    assert f"{metric} of task t is undefined" in caplog.text


def test_macro_is_the_mean_over_tasks() -> None:
    assert macro([0.5, 1.0]) == 0.75
    assert macro([]) == 0.0


def test_relative_errors_of_the_best_constant_answer_have_mean_one() -> None:
    classes, values = points(0, 2, 2, 1, 2), points(1, 2, 6)
    assert relative_errors(spec("accuracy", 3), np.full(5, 2.0), classes).tolist() == [2.5, 0, 0, 2.5, 0]
    squares = relative_errors(spec("pearson"), np.full(3, 3.0), values)  # variance (4 + 1 + 9) / 3
    assert squares == pytest.approx(np.array([4, 1, 9]) * 3 / 14)


@pytest.mark.parametrize("metric", ["f1", "macro_f1", "matthews"])
def test_relative_errors_count_rare_classes_as_much_where_the_metric_does(metric: str) -> None:
    labels = points(0, 0, 0, 0, 1)
    assert relative_errors(spec(metric), np.zeros(5), labels).tolist() == [0, 0, 0, 0, 5]  # mean 1, like the other
    assert relative_errors(spec(metric), np.ones(5), labels) == pytest.approx(np.array([1.25, 1.25, 1.25, 1.25, 0]))


def test_relative_errors_where_all_labels_are_the_same() -> None:
    """As if one of four were another: a wrong answer counts 4."""
    assert relative_errors(spec("accuracy"), points(0, 1, 1, 1), np.ones(4)).tolist() == [4, 0, 0, 0]
    assert relative_errors(spec("pearson"), points(1, 1, 1, 3), np.ones(4)).tolist() == [0, 0, 0, 16]
