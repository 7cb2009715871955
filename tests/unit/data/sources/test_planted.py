import numpy as np
import pytest

from distmoe.data.sources.planted import (
    ATTENUATION,
    SYNONYMS,
    Lexicon,
    PlantedFunction,
    disjoint_pairings,
    num_attributes,
)


def test_a_lexicon_has_different_words_and_a_private_one_moves_meanings_only():
    rng = np.random.default_rng(0)
    lexicon = Lexicon.draw(6, rng)
    assert len(set(lexicon.words)) == len(lexicon.words) == 6 * 2 * SYNONYMS * 3 // 2
    private = lexicon.reshuffled(rng)
    assert set(private.words) == set(lexicon.words)
    assert private.fillers == lexicon.fillers
    assert private.attribute_words != lexicon.attribute_words


@pytest.mark.parametrize(("num_task_groups", "expected"), [(1, 6), (3, 6), (5, 6), (6, 8), (7, 8), (8, 10)])
def test_there_are_enough_attributes_for_disjoint_pairings(num_task_groups, expected):
    assert num_attributes(num_task_groups) == expected
    assert expected % 2 == 0
    assert expected - 1 >= num_task_groups


@pytest.mark.parametrize("num", [6, 8, 10])
def test_pairings_use_every_attribute_once_and_no_pair_twice(num):
    pairings = disjoint_pairings(num, np.random.default_rng(3))
    assert len(pairings) == num - 1
    for pairs in pairings:
        assert sorted(i for pair in pairs for i in pair) == list(range(num))
    unordered = [frozenset(pair) for pairs in pairings for pair in pairs]
    assert len(set(unordered)) == len(unordered) == num * (num - 1) // 2


def test_a_score_by_hand():
    """Pairs (0, 1) and (3, 2), weights 2 and -1; x = (+1, -1, +1, +1).

    feature(0, 1) = 1 * (A - (1 - A)) = 2A - 1; feature(3, 2) = 1 * (A + (1 - A)) = 1.
    """
    function = PlantedFunction(((0, 1), (3, 2)), (2.0, -1.0), 2)
    x = np.array([[1, -1, 1, 1]], dtype=np.int8)
    assert function.score(x) == pytest.approx([2 * (2 * ATTENUATION - 1) - 1])


@pytest.mark.parametrize("num_classes", [2, 3])
def test_classes_are_balanced_over_all_texts(num_classes):
    function = PlantedFunction(((0, 1), (2, 3), (4, 5)), (1.3, -0.7, 0.9), num_classes)
    every = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T.astype(np.int8)
    shares = np.bincount(function.labels(every), minlength=num_classes) / len(every)
    assert np.abs(shares - 1 / num_classes).max() < 0.05


def test_a_regression_target_has_mean_0_and_variance_1():
    function = PlantedFunction(((0, 1), (2, 3), (4, 5)), (1.3, -0.7, 0.9), 0)
    every = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T.astype(np.int8)
    labels = np.array(function.labels(every))
    assert labels.mean() == pytest.approx(0, abs=1e-4)  # labels are rounded to 4 decimals
    assert labels.std() == pytest.approx(1, abs=1e-4)
