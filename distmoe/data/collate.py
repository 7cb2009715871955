"""From chosen examples to a padded :class:`TaskBatch`, without a loop over examples but those read from disk.

Shape letters: B examples of the batch, S positions, N examples and T tokens of the store.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from distmoe.data.batch import NO_LOSS, TaskBatch
from distmoe.data.encoded import ExampleStore


def collate(
    store: ExampleStore, rows_B: npt.NDArray[np.int64], loss_weights_B: npt.NDArray[np.float32], *, pad_token_id: int
) -> TaskBatch:
    """Returns the examples at ``rows_B``, padded to the longest of them.

    If any task of the store predicts tokens, the batch has labels and says where they are; if any has windows of
    packed documents, also ``position_ids_BS`` and ``segment_ids_BS``: which fields a batch has does not depend on its
    examples.

    Args:
        store: All examples of a split.
        rows_B: Rows of the store; at least one.
        loss_weights_B: Weight of each example's loss.
        pad_token_id: Fills the rest of each row.
    """
    lengths_B = store.lengths_N[rows_B]
    positions_S = np.arange(int(lengths_B.max()))
    mask_BS = positions_S < lengths_B[:, None]
    ids_BS = np.full(mask_BS.shape, pad_token_id, dtype=np.int64)
    types_BS = np.zeros_like(ids_BS)
    if len(store.input_ids_T):
        # Positions behind an example's end are clipped into the array; the mask replaces what they read.
        sources_BS = np.minimum(store.starts_N[rows_B][:, None] + positions_S, len(store.input_ids_T) - 1)
        ids_BS = np.where(mask_BS, store.input_ids_T[sources_BS], ids_BS)
        if store.token_type_ids_T is not None:
            types_BS = np.where(mask_BS, store.token_type_ids_T[sources_BS], types_BS)
    targets: dict[str, npt.NDArray[np.int64]] = {}
    if store.prompt_lengths_N is not None:
        targets["labels_BS"] = _next_tokens(ids_BS, lengths_B, store.prompt_lengths_N[rows_B])
    if store.windows:
        targets["position_ids_BS"] = np.where(mask_BS, positions_S, 0)
        targets["segment_ids_BS"] = np.zeros_like(ids_BS)
        _fill_windows(store, rows_B, ids_BS, **targets)
    if store.prompt_lengths_N is not None:
        targets["target_index_L"] = np.flatnonzero((targets["labels_BS"] != NO_LOSS) & mask_BS)
    return TaskBatch(
        input_ids_BS=torch.from_numpy(ids_BS.astype(np.int64)),
        attention_mask_BS=torch.from_numpy(mask_BS),
        token_type_ids_BS=torch.from_numpy(types_BS.astype(np.int64)),
        task_ids_B=torch.from_numpy(store.task_ids_N[rows_B]),
        labels_B=torch.from_numpy(store.labels_N[rows_B]),
        loss_weights_B=torch.from_numpy(np.asarray(loss_weights_B, dtype=np.float32)),
        example_ids_B=torch.from_numpy(store.example_ids_N[rows_B]),
        example_mask_B=torch.ones(len(rows_B), dtype=torch.bool),
        token_index_T=torch.from_numpy(np.flatnonzero(mask_BS)),
        **{name: torch.from_numpy(values) for name, values in targets.items()},
    )


def _next_tokens(
    ids_BS: npt.NDArray[np.int64], lengths_B: npt.NDArray[np.int32], prompt_lengths_B: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """Labels of prompt and target: the target's tokens, each at the position before it, the first at the prompt's end.

    A prompt without tokens has no position that its first target token could be predicted from.
    """
    next_S = np.arange(1, ids_BS.shape[1] + 1)
    has_loss_BS = (next_S >= prompt_lengths_B[:, None]) & (next_S < lengths_B[:, None])
    return np.where(has_loss_BS, np.roll(ids_BS, -1, axis=1), NO_LOSS).astype(np.int64)


def _fill_windows(
    store: ExampleStore,
    rows_B: npt.NDArray[np.int64],
    ids_BS: npt.NDArray[np.int64],
    *,
    labels_BS: npt.NDArray[np.int64],
    position_ids_BS: npt.NDArray[np.int64],
    segment_ids_BS: npt.NDArray[np.int64],
) -> None:
    """Reads the windows of the batch and writes them into its rows, in place."""
    for b, row in enumerate(rows_B.tolist()):
        split = store.windows.get(int(store.task_ids_N[row]))
        if split is None:
            continue
        window = split.read(int(store.example_ids_N[row]))
        for values_BS, values_S in (
            (ids_BS, window.input_ids_S),
            (labels_BS, window.labels_S),
            (position_ids_BS, window.position_ids_S),
            (segment_ids_BS, window.segment_ids_S),
        ):
            values_BS[b, : len(window)] = values_S


def placeholder(*, task_id: int, pad_token_id: int, store: ExampleStore | None = None) -> TaskBatch:
    """Returns the batch of a rank that has no example: one row that attends to one token and weighs nothing.

    Args:
        task_id: A task that the rank hosts, so that its gates and heads accept the row.
        pad_token_id: The row's token.
        store: Tells which fields the other ranks' batches have; None where no task predicts tokens.
    """
    has_targets = store is not None and store.prompt_lengths_N is not None
    has_windows = store is not None and bool(store.windows)
    zero_BS = torch.zeros(1, 1, dtype=torch.int64)
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
        labels_BS=zero_BS + NO_LOSS if has_targets else None,
        target_index_L=torch.zeros(0, dtype=torch.int64) if has_targets else None,
        position_ids_BS=zero_BS if has_windows else None,
        segment_ids_BS=zero_BS if has_windows else None,
    )
