import json

import numpy as np
import pytest
import torch

from distmoe.data.config import DataConfig, SamplingConfig
from distmoe.data.loader import TrainLoader
from distmoe.errors import ConfigError
from tests.unit.data import toy

SIZES = (30, 90, 12)


def loaders(classes, *, sizes=SIZES, seed=0, strategy="size_proportional", window=4, **config):
    where = toy.placement(classes)
    data = DataConfig(**{"batch_size": 24, **config}, sampling=SamplingConfig(strategy=strategy, bucket_window=window))
    encoded = toy.encoded(sizes)
    return [
        TrainLoader(encoded, tasks=toy.tasks(len(sizes)), config=data, placement=where, rank=rank, seed=seed)
        for rank in range(where.num_ranks)
    ]


def rows(batch):
    return list(zip(batch.task_ids_B.tolist(), batch.example_ids_B.tolist(), strict=True))


def global_step(ranks):
    """Sorted (task, example) of one step over all ranks, and mean over ranks and micro-batches of sum(weights)."""
    batches = [batch for rank in ranks for batch in rank.next_step()]
    total = sum(float(batch.loss_weights_B.sum()) for batch in batches) / len(batches)
    return sorted(row for batch in batches for row in rows(batch)), total


@pytest.mark.parametrize(("num_ranks", "micro"), [(2, None), (4, None), (1, 4), (2, 3), (4, 2)])
def test_colocated_the_global_batch_does_not_depend_on_ranks_or_micro_batches(num_ranks, micro):
    single = loaders([(1, (0, 1, 2))])
    many = loaders([(num_ranks, (0, 1, 2))], micro_batch_size=micro)
    for _ in range(9):
        expected, total = global_step(single)
        got, total_of_many = global_step(many)
        assert got == expected
        assert len(got) == 24
        assert total == pytest.approx(1)
        assert total_of_many == pytest.approx(1)


def test_each_example_weighs_the_same_when_colocated():
    """Mean over 2 ranks x 3 micro-batches of sum(w * loss) = mean loss of 24 examples, if w = 6 / 24."""
    for rank in loaders([(2, (0, 1, 2))], micro_batch_size=4):
        assert rank.accumulation_steps == 3
        for batch in rank.next_step():
            assert batch.loss_weights_B.tolist() == [0.25] * 4


def test_all_ranks_take_neighbouring_lengths_in_every_micro_batch():
    ranks = loaders([(3, (0, 1, 2))], micro_batch_size=2)
    for _ in range(4):
        by_rank = [rank.next_step() for rank in ranks]
        for micro in range(3):
            now = [int(length) for batches in by_rank for length in batches[micro].attention_mask_BS.sum(1)]
            later = [
                int(n) for batches in by_rank for batch in batches[micro + 1 :] for n in batch.attention_mask_BS.sum(1)
            ]
            assert max(now) <= min(later)


@pytest.mark.parametrize("strategy", ["size_proportional", "temperature", "uniform", "round_robin"])
@pytest.mark.parametrize(
    "classes", [[(1, (0,)), (3, (1, 2))], [(2, (0, 2)), (2, (1,))], [(1, (2,)), (2, (1,)), (1, (0,))]]
)
def test_partitioned_the_expected_weighted_loss_is_the_mixtures(strategy, classes):
    """Exact enumeration: a window of one epoch per task and class draws each task exactly at its rate.

    The window below holds 48 examples per rank, and the sizes make every expected count a whole number, so the sum
    of weights per task over one window is its expectation: it must be the task's mixture weight.
    """
    sizes = (20, 20, 20)  # equal sizes: all strategies give 1/3 each, and class {1, 2} splits its draws in halves
    ranks = loaders(classes, sizes=sizes, strategy=strategy, window=8)
    weight_of_task = np.zeros(3)
    for _ in range(8):
        for rank in ranks:
            for batch in rank.next_step():
                np.add.at(weight_of_task, batch.task_ids_B.numpy(), batch.loss_weights_B.double().numpy())
    np.testing.assert_allclose(weight_of_task / (8 * 4), [1 / 3] * 3, rtol=1e-6)


def test_partitioned_weights_reach_the_mixture_for_unequal_sizes():
    """Mixture 30:90:12. Class {0, 2} has 1 of 4 ranks: 6 draws a step, 30:12 in a window of 7 steps (42 draws).

    Its weights are 42/132 * 24/6 / 6 each; per window task 0 gets 30 of them: 30 * 42/132 * 4/6 / (7 * 4) = 30/132.
    """
    ranks = loaders([(1, (0, 2)), (3, (1,))], window=7)
    weight_of_task = np.zeros(3)
    for _ in range(7):
        for rank in ranks:
            for batch in rank.next_step():
                np.add.at(weight_of_task, batch.task_ids_B.numpy(), batch.loss_weights_B.double().numpy())
    np.testing.assert_allclose(weight_of_task / (7 * 4), np.array(SIZES) / sum(SIZES), rtol=1e-6)


def test_a_rank_trains_only_tasks_that_it_hosts():
    ranks = loaders([(1, (0, 2)), (3, (1,))])
    for _ in range(5):
        for index, rank in enumerate(ranks):
            for batch in rank.next_step():
                assert set(batch.task_ids_B.tolist()) <= ({0, 2} if index == 0 else {1})


def test_a_class_that_draws_nothing_gets_placeholders_of_a_task_it_hosts():
    ranks = loaders([(1, ()), (1, (0, 1, 2))], batch_size=8, micro_batch_size=2)
    idle, busy = (rank.next_step() for rank in ranks)
    assert len(idle) == len(busy) == 2
    assert all(batch.num_examples == 0 and batch.token_index_T.numel() == 0 for batch in idle)
    assert all(batch.num_examples == 2 for batch in busy)
    total = sum(float(batch.loss_weights_B.sum()) for batch in idle + busy) / 4
    assert total == pytest.approx(1)


@pytest.mark.parametrize("before", [0, 3, 4, 5])
def test_resuming_gives_the_same_batches_on_every_rank(before):
    classes = [(1, (0, 2)), (2, (1,))]
    original, resumed = loaders(classes, micro_batch_size=4), loaders(classes, micro_batch_size=4)
    for _ in range(before):
        for rank in original:
            rank.next_step()
    states = [json.dumps(rank.state_dict()) for rank in original]
    assert len(set(states)) == 1
    for rank in resumed:
        rank.load_state_dict(json.loads(states[0]))
    for _ in range(6):
        for a, b in zip(original, resumed, strict=True):
            for left, right in zip(a.next_step(), b.next_step(), strict=True):
                assert left.tensors().keys() == right.tensors().keys()
                for name, tensor in left.tensors().items():
                    assert torch.equal(tensor, right.tensors()[name])


@pytest.mark.parametrize(
    ("batch_size", "num_ranks", "micro", "message"),
    [
        (10, 4, None, r"got: +data\.batch_size=10 on 4 ranks\n.*a multiple of 4\n.*data\.batch_size=12"),
        (24, 2, 5, r"data\.batch_size=24 on 2 ranks x data\.micro_batch_size=5 = 10\n.*multiple of 10\n.*=30"),
    ],
)
def test_a_batch_that_cannot_be_dealt_equally_is_refused(batch_size, num_ranks, micro, message):
    with pytest.raises(ConfigError, match=message):
        loaders([(num_ranks, (0, 1, 2))], batch_size=batch_size, micro_batch_size=micro)


def test_the_mixture_is_told():
    (loader,) = loaders([(1, (0, 1, 2))])
    assert loader.mixture_weights == pytest.approx([30 / 132, 90 / 132, 12 / 132])
