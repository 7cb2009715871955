"""Transfer by labels, against refits and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from distmoe.errors import DataError
from distmoe.structure import transfer
from distmoe.structure.search import find_clearest
from distmoe.structure.similarity import Similarity

RNG = np.random.default_rng(0)


def refitted_r2(features: np.ndarray, labels: np.ndarray, ridge: float) -> float:
    """Leaves out each example in turn: the slow way."""
    centred = features - features.mean(axis=0)
    scale = np.linalg.eigvalsh(centred @ centred.T).clip(0).sum() / min(features.shape)
    residuals = []
    for left_out in range(len(features)):
        keep = np.arange(len(features)) != left_out
        x, y = centred[keep], labels[keep]
        # With the same ridge, and the intercept unpenalised but shared with all examples, as the closed form has it.
        design = np.hstack([x, np.ones((len(x), 1))])
        penalty = np.diag([*[ridge * scale] * x.shape[1], 0.0])
        weights = np.linalg.solve(design.T @ design + penalty, design.T @ y)
        residuals.append(labels[left_out] - np.append(centred[left_out], 1.0) @ weights)
    return 1 - np.square(residuals).sum() / np.square(labels).sum()


def test_the_closed_form_is_leaving_out_and_refitting() -> None:
    features = RNG.normal(size=(30, 4))
    labels = transfer.label_columns((features[:, 0] + features[:, 1] + RNG.normal(size=30) > 0).astype(float), 2)
    expected = max(refitted_r2(features, labels, ridge) for ridge in transfer.RIDGES)
    assert transfer.readout_r2(features, labels) == pytest.approx(expected, abs=1e-9)


def test_features_that_hold_the_labels_score_one_and_noise_scores_nothing() -> None:
    values = RNG.normal(size=50)
    labels = transfer.label_columns(values, 0)
    assert transfer.readout_r2(np.stack([values, RNG.normal(size=50)], axis=1), labels) > 0.99
    assert transfer.readout_r2(RNG.normal(size=(50, 40)), labels) < 0.1
    assert transfer.readout_r2(RNG.normal(size=(50, 3)), np.zeros((50, 1))) == 0.0


def test_label_columns_are_centred_classes_or_the_value() -> None:
    assert transfer.label_columns(np.array([0.0, 1.0]), 2).tolist() == [[0.5, -0.5], [-0.5, 0.5]]
    assert transfer.label_columns(np.array([1.0, 3.0]), 0).tolist() == [[-1.0], [1.0]]


def with_own(transfer_ST: np.ndarray, own: float) -> np.ndarray:
    """The same, with what each task's own layers make of its labels on the diagonal."""
    return np.where(np.eye(len(transfer_ST), dtype=bool), own, transfer_ST)


def test_easy_targets_and_good_sources_say_nothing() -> None:
    sources, targets = np.array([0.1, 0.3, 0.0, 0.2]), np.array([0.5, 0.0, 0.2, 0.4])
    assert np.allclose(transfer.affinity(with_own(sources[:, None] + targets, 0.9)), 0.0, atol=1e-12)


def test_of_a_target_that_can_hardly_be_read_a_small_share_counts_as_much() -> None:
    """Of target 0 a tenth of what the others hold: shares of its best source are the same."""
    values = with_own(RNG.uniform(0.1, 0.5, size=(4, 4)), 0.6)
    found = transfer.affinity(values)
    assert np.abs(found).max() > 0.01
    assert np.allclose(transfer.affinity(values * np.array([0.1, 1, 1, 1])), found, atol=1e-12)


def test_what_nothing_reads_is_noise() -> None:
    """R^2 of at most 0.006 of a target, below 0 of another: far smaller affinities than of real shares."""
    values = with_own(RNG.uniform(0.1, 0.5, size=(4, 4)), 0.6)
    real = np.abs(transfer.affinity(values)).max()
    noise = np.abs(transfer.affinity(np.where([True, False, False, False], -0.01, 0.01 * values))).max()
    assert 0 < noise < 0.2 * real


def test_planted_pairs_are_found_through_unequal_sources_and_targets() -> None:
    """Tasks 0 and 2, and 1 and 3, belong together by 0.2; task 3 is a source of no use, target 0 an easy one."""
    planted = np.zeros((4, 4))
    planted[[0, 2, 1, 3], [2, 0, 3, 1]] = 0.2
    values = planted + np.array([0.1, 0.2, 0.1, 0.0])[:, None] + np.array([0.5, 0.1, 0.1, 0.2])
    found = transfer.affinity(with_own(values, 1.0))
    assert np.allclose(found, found.T)
    assert found[0, 2] == pytest.approx(0.4 / 3)
    assert find_clearest(Similarity.from_values(found)).accepted == ((0, 2), (1, 3))


def test_of_three_tasks_nothing_is_left() -> None:
    assert np.allclose(transfer.affinity(RNG.normal(size=(3, 3))), 0.0, atol=1e-12)
    assert np.abs(transfer.affinity(RNG.normal(size=(4, 4)))).max() > 0.01


def test_features_that_are_not_finite_are_refused() -> None:
    features = np.ones((2, 8, 1))
    features[1, 3] = np.inf
    with pytest.raises(DataError, match=r"not finite[\s\S]*layers of 1 of 2 tasks"):
        transfer.transfer_matrix(features, np.zeros(8, dtype=np.int64), [np.ones((8, 1))])


def test_the_matrix_holds_every_source_and_target() -> None:
    """Two tasks of 10 examples: source 0 passes the first label on, source 1 the second."""
    first, second = RNG.normal(size=10), RNG.normal(size=10)
    features = np.zeros((2, 20, 1))
    features[0, :10, 0], features[1, 10:, 0] = first, second
    features[0, 10:, 0], features[1, :10, 0] = RNG.normal(size=10), RNG.normal(size=10)
    labels = [transfer.label_columns(values, 0) for values in (first, second)]
    found = transfer.transfer_matrix(features, np.repeat([0, 1], 10), labels)
    assert found.shape == (2, 2)
    assert min(found[0, 0], found[1, 1]) > 0.99
    assert max(found[0, 1], found[1, 0]) < 0.6


def test_too_few_examples_of_a_task_are_refused() -> None:
    transfer.check_examples([8, 100], ["a", "b"])
    with pytest.raises(DataError, match=r"too few examples of b[\s\S]*got: +7[\s\S]*at least 8 of each of 2 tasks"):
        transfer.check_examples([8, 7], ["a", "b"])
