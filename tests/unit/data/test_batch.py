"""A batch carries token targets only where a task has them, and takes every tensor along."""

from __future__ import annotations

from dataclasses import replace

import torch

from distmoe.data.collate import placeholder

TARGETS = ("labels_BS", "position_ids_BS", "segment_ids_BS")


def test_a_batch_without_token_targets_has_none_after_a_move():
    moved = placeholder(task_id=0, pad_token_id=0).to("meta")
    assert not moved.tensors().keys() & set(TARGETS)
    assert all(tensor.is_meta for tensor in moved.tensors().values())


def test_token_targets_move_with_their_batch():
    ids = torch.zeros(1, 1, dtype=torch.int64)
    batch = replace(placeholder(task_id=0, pad_token_id=0), **dict.fromkeys(TARGETS, ids))
    assert all(getattr(batch.to("meta"), name).is_meta for name in TARGETS)
