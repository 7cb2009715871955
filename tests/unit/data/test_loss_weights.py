"""Each task loss against a hand computation with uneven tasks (ca_mtl.md section 10, number 14).

Losses of a step of 6 examples on 2 ranks: rank 0 has task 0 three times (1, 2, 3); rank 1 has task 0 once (6) and
task 2 twice (4, 10). Task 1 is absent.

=============  ==============================================
example_mean   (1 + 2 + 3 + 6 + 4 + 10) / 6 = 26 / 6
task_sum       (1 + 2 + 3 + 6) / 4 + (4 + 10) / 2 = 3 + 7 = 10
task_mean      10 / 2 = 5
=============  ==============================================

A mean of the ranks' own task means would be (2 + (6 + 7) / 2) / 2 = 4.25 in the last line.
"""

import numpy as np
import pytest

from distmoe.data.loss_weights import step_weights
from tests.unit.data.test_loader import loaders

TASKS = np.array([0, 0, 0, 0, 2, 2])
LOSSES = np.array([1.0, 2, 3, 6, 4, 10])


@pytest.mark.parametrize(("rule", "expected"), [("example_mean", 26 / 6), ("task_sum", 10.0), ("task_mean", 5.0)])
def test_the_mean_over_ranks_of_weighted_sums_is_the_rule(rule, expected):
    weights = step_weights([TASKS], rule=rule, corrections=[1.0], num_shares=2, batch_size=6)[0]
    by_rank = [(weights[part] * LOSSES[part]).sum() for part in (slice(0, 3), slice(3, 6))]
    assert np.mean(by_rank) == pytest.approx(expected, rel=1e-6)


def test_tasks_are_counted_over_all_host_classes():
    """Class 0 trains task 0 (losses 1, 3), class 1 task 1 (loss 5): mean of the means 2 and 5."""
    first, second = step_weights(
        [np.array([0, 0]), np.array([1])], rule="task_mean", corrections=[9.0, 9.0], num_shares=3, batch_size=3
    )
    assert (first * [1, 3]).sum() / 3 + (second * [5]).sum() / 3 == pytest.approx(3.5)


@pytest.mark.parametrize("classes", [[(1, (0, 1, 2))], [(4, (0, 1, 2))], [(1, (0,)), (3, (1, 2))]])
@pytest.mark.parametrize(("rule", "per_task"), [("task_sum", 1.0), ("task_mean", None)])
def test_every_present_task_weighs_the_same_whatever_ranks_and_micro_batches(classes, rule, per_task):
    ranks = loaders(classes, task_loss=rule, micro_batch_size=2)
    for _ in range(3):
        batches = [batch for rank in ranks for batch in rank.next_step()]
        sums = np.zeros(3)
        for batch in batches:
            np.add.at(sums, batch.task_ids_B.numpy(), batch.loss_weights_B.numpy() / len(batches))
        present = sums[sums > 0]
        assert present == pytest.approx(np.full(len(present), per_task or 1 / len(present)), rel=1e-5)
