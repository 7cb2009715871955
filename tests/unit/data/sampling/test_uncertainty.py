"""The choice against brute force (ca_mtl.md section 10, number 10)."""

import numpy as np
import pytest

from distmoe.data.sampling.order import ExampleOrder
from distmoe.data.sampling.uncertainty import adjust_scores, choose, take_distinct


def pools(count):
    """Random pools of up to 5 tasks; coarse scores, so that there are ties."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        size = int(rng.integers(1, 60))
        ids = rng.permutation(500)[:size]
        yield rng.integers(0, 12, size) / 11, ids % 5, ids // 5, int(rng.integers(0, size + 1))


def test_the_largest_are_chosen_and_ties_go_by_task_and_example():
    for scores, tasks, examples, count in pools(1000):
        ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], tasks[i], examples[i]))
        chosen = choose(scores, tasks, examples, count=count)
        assert chosen.tolist() == ranked[:count]
        if 0 < count < len(scores):
            dropped = np.setdiff1d(np.arange(len(scores)), chosen)
            assert scores[chosen].min() >= scores[dropped].max()


def test_the_order_of_the_pool_does_not_matter():
    rng = np.random.default_rng(1)
    for scores, tasks, examples, count in pools(100):
        mixed = rng.permutation(len(scores))
        one = choose(scores, tasks, examples, count=count, quota=1)
        other = mixed[choose(scores[mixed], tasks[mixed], examples[mixed], count=count, quota=1)]
        assert one.tolist() == other.tolist()


@pytest.mark.parametrize("quota", [1, 3])
def test_a_quota_gives_every_task_its_best_first(quota):
    for scores, tasks, examples, _ in pools(300):
        present = np.unique(tasks)
        count = min(len(scores), quota * len(present) + 2)
        chosen = choose(scores, tasks, examples, count=count, quota=quota)
        for task in present:
            of_task = np.flatnonzero(tasks == task)
            best = of_task[np.lexsort((examples[of_task], -scores[of_task]))][:quota]
            assert set(best) <= set(chosen)


@pytest.mark.parametrize("kind", ["paper", "repo", "task_rank"])
def test_a_common_factor_changes_no_choice(kind):
    for scores, tasks, examples, count in pools(200):
        chosen = [
            choose(adjust_scores(factor * scores, tasks, examples, np.full(len(tasks), 3), kind), tasks, examples,
                   count=count).tolist()
            for factor in (1.0, 0.25)
        ]  # fmt: skip
        assert chosen[0] == chosen[1]


def test_repo_scores_by_hand():
    """Task 0 (2 classes) has mean 0.5 = the largest, task 1 (a regression) mean 0.25: its scores halve."""
    tasks, classes = np.array([0, 0, 1, 1]), np.array([2, 2, 1, 1])
    found = adjust_scores(np.array([0.2, 0.8, 0.1, 0.4]), tasks, np.arange(4), classes, "repo")
    shrink = np.log(2) / (np.log(2) + 1e-5)
    assert found == pytest.approx([0.2 * shrink, 0.8 * shrink, 0.1 * 0.5 / shrink, 0.4 * 0.5 / shrink], rel=1e-9)
    assert 1 * shrink == pytest.approx(0.999986, abs=1e-6)  # the published maximum for 2 classes


def test_a_pool_without_any_uncertainty_is_no_division_by_zero():
    assert adjust_scores(np.zeros(3), np.array([0, 1, 1]), np.arange(3), np.full(3, 2), "repo").tolist() == [0.0] * 3


def test_a_score_that_is_not_finite_leaves_the_others_as_they_are():
    tasks, classes = np.array([0, 0, 1, 1]), np.array([1, 1, 1, 1])
    scores = np.array([0.9, 0.8, np.inf, 0.1])
    found = adjust_scores(scores, tasks, np.arange(4), classes, "repo")
    assert found == pytest.approx([0.9, 0.8, np.inf, 0.1 * 0.1 / 0.85])
    assert choose(found, tasks, np.arange(4), count=2).tolist() == [2, 0]


def test_task_ranks_by_hand():
    tasks = np.array([0, 0, 0, 1])
    found = adjust_scores(np.array([0.5, 0.1, 0.5, 0.9]), tasks, np.array([7, 1, 2, 0]), np.full(4, 2), "task_rank")
    assert found == pytest.approx([2 / 3, 1 / 3, 1.0, 1.0])  # of the equal ones, example 2 comes before 7


def test_candidates_differ_also_across_the_border_of_two_epochs():
    order, place = ExampleOrder(5, seed=0, task_id=0), 0
    for _ in range(20):
        found, place = take_distinct(order, place, 4)
        assert len(set(found.tolist())) == 4
    whole, _ = take_distinct(order, 3, 5)
    assert sorted(whole.tolist()) == [0, 1, 2, 3, 4]
