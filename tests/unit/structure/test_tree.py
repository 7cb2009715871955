"""Trees for pictures and agreement of partitions."""

from __future__ import annotations

import pytest

from distmoe.structure.similarity import Similarity
from distmoe.structure.tree import adjusted_rand_index, dendrogram, family_agreement


def test_the_dendrogram_joins_the_most_similar_first():
    """0 and 2 at 0.9; with 1 at the mean of 0.2 and 0.4, so distance 0.7."""
    tree = dendrogram(Similarity.from_values([[1, 0.2, 0.9], [0.2, 1, 0.4], [0.9, 0.4, 1]]))
    assert set(tree.joins[0, :2]) == {0, 2}
    assert tree.joins[:, 2].tolist() == pytest.approx([0.1, 0.7])
    assert set(tree.leaf_order[:2]) == {0, 2} or set(tree.leaf_order[1:]) == {0, 2}


def test_equal_partitions_agree_fully_whatever_their_order():
    assert adjusted_rand_index([(0, 1), (2, 3)], [(3, 2), (1, 0)]) == 1.0


def test_one_task_group_has_chance_agreement_with_planted_ones():
    assert adjusted_rand_index([(0, 1, 2, 3)], [(0, 1), (2, 3)]) == 0.0


def test_one_misplaced_task_of_six_by_hand():
    """Of 15 pairs, 6 are together in the planted partition, 7 in the found one, 4 in both (01, 34, 35, 45).

    Chance: 6 * 7 / 15 = 2.8. Index (4 - 2.8) / (6.5 - 2.8) = 12 / 37.
    """
    assert adjusted_rand_index([(0, 1, 2), (3, 4, 5)], [(0, 1), (2, 3, 4, 5)]) == pytest.approx(12 / 37)


def test_families_are_agreed_with_in_any_order_and_not_where_a_task_has_none():
    assert family_agreement(["a", "b", "a", "b"], [(0, 2), (1, 3)]) == 1.0
    assert family_agreement(["a", "b", "a", "b"], [(0, 1, 2, 3)]) == 0.0
    assert family_agreement(["a", None], [(0,), (1,)]) is None
