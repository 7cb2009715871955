"""From chosen examples to a padded :class:`TaskBatch`, without a loop over examples.

Shape letters: B examples of the batch, S positions, N examples and T tokens of the store.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from distmoe.data.batch import TaskBatch
from distmoe.data.encoded import ExampleStore


def collate(
    store: ExampleStore, rows_B: npt.NDArray[np.int64], loss_weights_B: npt.NDArray[np.float32], *, pad_token_id: int
) -> TaskBatch:
    """Returns the examples at ``rows_B``, padded to the longest of them.

    Args:
        store: All examples of a split.
        rows_B: Rows of the store; at least one.
        loss_weights_B: Weight of each example's loss.
        pad_token_id: Fills the rest of each row.
    """
    lengths_B = store.lengths_N[rows_B]
    positions_S = np.arange(int(lengths_B.max()))
    mask_BS = positions_S < lengths_B[:, None]
    # Positions behind an example's end are clipped into the array; the mask replaces what they read.
    sources_BS = np.minimum(store.starts_N[rows_B][:, None] + positions_S, len(store.input_ids_T) - 1)
    ids_BS = np.where(mask_BS, store.input_ids_T[sources_BS], pad_token_id).astype(np.int64)
    if store.token_type_ids_T is None:
        types_BS = np.zeros_like(ids_BS)
    else:
        types_BS = np.where(mask_BS, store.token_type_ids_T[sources_BS], 0).astype(np.int64)
    return TaskBatch(
        input_ids_BS=torch.from_numpy(ids_BS),
        attention_mask_BS=torch.from_numpy(mask_BS),
        token_type_ids_BS=torch.from_numpy(types_BS),
        task_ids_B=torch.from_numpy(store.task_ids_N[rows_B]),
        labels_B=torch.from_numpy(store.labels_N[rows_B]),
        loss_weights_B=torch.from_numpy(np.asarray(loss_weights_B, dtype=np.float32)),
        example_ids_B=torch.from_numpy(store.example_ids_N[rows_B]),
        example_mask_B=torch.ones(len(rows_B), dtype=torch.bool),
        token_index_T=torch.from_numpy(np.flatnonzero(mask_BS)),
    )


def placeholder(*, task_id: int, pad_token_id: int) -> TaskBatch:
    """Returns the batch of a rank that has no example: one row that attends to one token and weighs nothing.

    Args:
        task_id: A task that the rank hosts, so that its gates and heads accept the row.
        pad_token_id: The row's token.
    """
    return TaskBatch(
        input_ids_BS=torch.full((1, 1), pad_token_id),
        attention_mask_BS=torch.ones(1, 1, dtype=torch.bool),
        token_type_ids_BS=torch.zeros(1, 1, dtype=torch.int64),
        task_ids_B=torch.tensor([task_id]),
        labels_B=torch.zeros(1),
        loss_weights_B=torch.zeros(1),
        example_ids_B=torch.tensor([-1]),
        example_mask_B=torch.zeros(1, dtype=torch.bool),
        token_index_T=torch.zeros(0, dtype=torch.int64),
    )
