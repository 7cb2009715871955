from itertools import pairwise

import numpy as np
import pytest

from distmoe.data.sampling.order import ExampleOrder


def test_each_epoch_has_every_example_once_in_another_order():
    order = ExampleOrder(20, seed=0, task_id=1)
    first, second = order.take(0, 20), order.take(20, 20)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(20))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("cuts", [(0, 3, 7, 50), (0, 25, 50), (0, 49, 50)])
def test_however_it_is_taken_the_order_is_the_same(cuts):
    whole = ExampleOrder(7, seed=5, task_id=2).take(0, 50)
    order = ExampleOrder(7, seed=5, task_id=2)
    parts = [order.take(a, b - a) for a, b in pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_it_can_start_anywhere():
    whole = ExampleOrder(7, seed=5, task_id=2).take(0, 30)
    np.testing.assert_array_equal(ExampleOrder(7, seed=5, task_id=2).take(16, 9), whole[16:25])


def test_tasks_and_seeds_have_their_own_order():
    orders = [ExampleOrder(30, seed=s, task_id=t).take(0, 30).tolist() for s, t in ((0, 0), (0, 1), (1, 0))]
    assert len(set(map(tuple, orders))) == 3


def test_taking_nothing_gives_nothing():
    assert ExampleOrder(5, seed=0, task_id=0).take(3, 0).tolist() == []
