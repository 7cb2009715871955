from collections import Counter

import pytest
import torch

from distmoe.data.config import DataConfig
from distmoe.data.eval_loader import EvalLoader
from tests.unit.data import toy

SIZES = (11, 3, 26)


def loaders(classes, batch_size=4):
    where = toy.placement(classes)
    return [
        EvalLoader(
            toy.encoded((5, 5, 5), SIZES),
            tasks=toy.tasks(3),
            config=DataConfig(eval_batch_size=batch_size),
            placement=where,
            rank=rank,
        )
        for rank in range(where.num_ranks)
    ]


CLASSES = [[(1, (0, 1, 2))], [(4, (0, 1, 2))], [(1, (0, 1)), (2, (2,))], [(3, (1,)), (1, (0, 2))], [(7, (0, 1, 2))]]


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_example_is_seen_once_and_every_rank_makes_equally_many_batches(classes, batch_size):
    ranks = loaders(classes, batch_size)
    by_rank = [list(rank.batches("validation")) for rank in ranks]
    assert len({len(batches) for batches in by_rank}) == 1
    assert len(by_rank[0]) == ranks[0].num_batches("validation")
    seen = Counter(
        (int(task), int(example))
        for batches in by_rank
        for batch in batches
        for task, example in zip(
            batch.task_ids_B[batch.example_mask_B], batch.example_ids_B[batch.example_mask_B], strict=True
        )
    )
    assert seen == Counter((task, example) for task, size in enumerate(SIZES) for example in range(size))


@pytest.mark.parametrize("classes", CLASSES)
def test_every_row_belongs_to_a_task_that_the_rank_hosts_placeholders_included(classes):
    where = toy.placement(classes)
    for rank, loader in enumerate(loaders(classes)):
        for batch in loader.batches("validation"):
            assert set(batch.task_ids_B.tolist()) <= set(where.hosted_tasks(rank))


def test_weights_are_one_for_examples_and_zero_for_placeholders():
    for loader in loaders([(3, (1,)), (1, (0, 2))]):
        for batch in loader.batches("validation"):
            assert torch.equal(batch.loss_weights_B, batch.example_mask_B.float())


def test_the_longest_examples_come_first():
    (loader,) = loaders([(1, (0, 1, 2))])
    widths = [batch.input_ids_BS.shape[1] for batch in loader.batches("validation")]
    assert widths == sorted(widths, reverse=True)


def test_evaluating_twice_gives_the_same_batches():
    (loader,) = loaders([(1, (0, 1, 2))])
    for first, second in zip(loader.batches("validation"), loader.batches("validation"), strict=True):
        assert torch.equal(first.input_ids_BS, second.input_ids_BS)


def test_a_missing_test_split_is_represented_by_validation():
    (loader,) = loaders([(1, (0, 1, 2))])
    assert sum(batch.num_examples for batch in loader.batches("test")) == sum(SIZES)
