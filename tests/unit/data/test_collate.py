import numpy as np
import pytest
import torch

from distmoe.data.collate import collate, placeholder
from distmoe.data.encoded import ExampleStore
from tests.unit.data import toy


def oracle(splits, rows, pad):
    """One example at a time: (ids, mask, types) padded to the longest."""
    flat = [(task, example) for task, split in enumerate(splits) for example in range(len(split))]
    examples = []
    for row in rows:
        task, example = flat[row]
        start, length = splits[task].starts_N[example], splits[task].lengths_N[example]
        examples.append(splits[task].input_ids_T[start : start + length].tolist())
    longest = max(map(len, examples))
    ids = [example + [pad] * (longest - len(example)) for example in examples]
    mask = [[True] * len(example) + [False] * (longest - len(example)) for example in examples]
    return ids, mask


@pytest.mark.parametrize("rows", [[0], [11], [0, 4, 11, 2, 2], list(range(12))])
def test_it_equals_padding_one_example_at_a_time(rows):
    splits = (toy.split(5), toy.split(7, task=1))
    batch = collate(
        ExampleStore.join(splits), np.array(rows), np.full(len(rows), 0.5, dtype=np.float32), pad_token_id=9
    )
    ids, mask = oracle(splits, rows, pad=9)
    assert batch.input_ids_BS.tolist() == ids
    assert batch.attention_mask_BS.tolist() == mask
    assert batch.token_type_ids_BS.tolist() == [[int(m) for m in row] for row in mask]
    assert batch.token_index_T.tolist() == torch.tensor(mask).flatten().nonzero().flatten().tolist()
    assert batch.task_ids_B.tolist() == [0 if row < 5 else 1 for row in rows]
    assert batch.example_ids_B.tolist() == [row if row < 5 else row - 5 for row in rows]
    assert batch.loss_weights_B.tolist() == [0.5] * len(rows)
    assert batch.num_examples == len(rows)


def test_dtypes_are_those_of_the_model():
    batch = collate(ExampleStore.join((toy.split(3),)), np.array([0, 1]), np.ones(2), pad_token_id=0)
    for name in ("input_ids_BS", "token_type_ids_BS", "task_ids_B", "example_ids_B", "token_index_T"):
        assert getattr(batch, name).dtype == torch.int64
    assert batch.attention_mask_BS.dtype == batch.example_mask_B.dtype == torch.bool
    assert batch.labels_B.dtype == batch.loss_weights_B.dtype == torch.float32


def test_float_labels_survive_a_batch_that_begins_with_class_ids():
    """CA-MTL's reference collator took its type from the first example and cut regression targets to integers."""
    classes, numbers = toy.split(4), toy.split(4, task=1)
    numbers.labels_N[:] = [3.75, 0.2, -1.5, 4.6]
    batch = collate(ExampleStore.join((classes, numbers)), np.array([0, 4, 5, 6, 7]), np.ones(5), pad_token_id=0)
    assert batch.labels_B.tolist() == [0.0, *torch.tensor([3.75, 0.2, -1.5, 4.6]).tolist()]


def test_segments_are_zero_when_the_tokenizer_makes_none():
    store = ExampleStore.join((toy.split(3, types=False),))
    assert not collate(store, np.array([0, 1]), np.ones(2), pad_token_id=0).token_type_ids_BS.any()


def test_a_placeholder_attends_to_one_token_and_weighs_nothing():
    batch = placeholder(task_id=3, pad_token_id=7)
    assert batch.attention_mask_BS.tolist() == [[True]]
    assert batch.input_ids_BS.tolist() == [[7]]
    assert batch.task_ids_B.tolist() == [3]
    assert batch.example_ids_B.tolist() == [-1]
    assert batch.loss_weights_B.tolist() == [0.0]
    assert batch.token_index_T.shape == (0,)
    assert batch.num_examples == 0
    real = collate(ExampleStore.join((toy.split(3),)), np.array([0]), np.ones(1), pad_token_id=0)
    for name, value in vars(batch).items():
        assert getattr(value, "dtype", None) == getattr(getattr(real, name), "dtype", None)
