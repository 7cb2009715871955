"""The probe set as batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distmoe.errors import DataError
from distmoe.training.structural.probe import ProbeSet
from tests.unit.data.toy import encoded


def test_batches_hold_the_set_in_order_and_windows_go_round_it() -> None:
    data = encoded((100, 60))
    probe = ProbeSet(data, num_examples=80, seed=3)
    seen = [
        (int(task), int(example))
        for index in range(probe.num_batches)
        for task, example in zip(probe.batch(index).task_ids_B, probe.batch(index).example_ids_B, strict=True)
    ]
    assert tuple(seen) == probe.probe.ids
    windows = [probe.window(index, 16) for index in range(5)]
    assert sorted(
        (int(t), int(e)) for one in windows for t, e in zip(one.task_ids_B, one.example_ids_B, strict=True)
    ) == list(probe.probe.ids)
    assert all(0 < int((one.task_ids_B == 0).sum()) < 16 for one in windows)
    assert np.array_equal(probe.window(5, 16).example_ids_B, windows[0].example_ids_B)


def test_a_validation_probe_compares_on_validation_and_still_draws_from_training() -> None:
    data = encoded((100, 60))
    held_out = replace(data, validation=encoded((30, 20)).train)
    probe = ProbeSet(held_out, num_examples=50, seed=3, split="validation")
    assert probe.probe.sizes == (30, 20)
    assert probe.counts() == (30, 20)
    drawn, num_tokens = probe.draw((0,), 0, 100, key="k", part=(0, 1))
    assert sorted(drawn.example_ids_B.tolist()) == list(range(100))
    assert num_tokens == int(drawn.attention_mask_BS.sum())


def test_more_examples_than_there_are_is_refused() -> None:
    with pytest.raises(DataError, match=r"larger than the data[\s\S]*at most 8"):
        ProbeSet(encoded((4, 4)), num_examples=9, seed=0)
