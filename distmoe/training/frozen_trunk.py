"""What the frozen, unconditioned layers give on training examples, kept for examples that are scored again and again.

Exactness: an example's states are computed once, in a batch that depends on data and configuration only; whether an
example is kept does too. So scores do not depend on when a run was interrupted. They differ from scores without a cache
by the rounding of other batch shapes.

The states are those of evaluation, without dropout. Training may start from them only where it has none.

Collectives: none. The layers are dense and frozen; ZeRO-3, which would gather them, is left out by the caller.

Shape letters: N rows of the store, T tokens that are kept, B sequences, S positions, D model width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from distmoe.data.batch import TaskBatch
from distmoe.data.pool_loader import PoolLoader
from distmoe.log import get_logger
from distmoe.models.multitask import MultiTaskEncoder

_log = get_logger(__name__)

MIB = 2**20


class FrozenTrunk:
    """States behind the frozen layers, in host memory.

    Args:
        model: Its encoder has a trunk (:attr:`~distmoe.models.encoder.Encoder.trunk_depth` > 0).
        pools: Whose candidates are scored.
        num_steps: Optimizer steps of the run.
        budget: Bytes that may be kept on this rank.
    """

    def __init__(self, model: MultiTaskEncoder, pools: PoolLoader, *, num_steps: int, budget: int) -> None:
        assert model.encoder.trunk_depth > 0, "nothing is frozen"
        self._model, self._pools = model, pools
        parameter = next(model.encoder.embeddings.parameters())
        store = pools.store
        token_bytes = model.shape.hidden_size * parameter.element_size()
        rows_N = pools.recurring_rows(num_steps)
        fits_N = np.cumsum(store.lengths_N[rows_N], dtype=np.int64) * token_bytes <= budget
        # Longest first, like the batches of a scoring pass: neighbours in length waste no padding.
        kept = rows_N[fits_N]
        self._rows = kept[np.argsort(-store.lengths_N[kept], kind="stable")]
        self._first_token_N = np.full(len(store.lengths_N), -1, dtype=np.int64)
        self._first_token_N[self._rows] = np.cumsum([0, *store.lengths_N[self._rows][:-1]]) if len(self._rows) else 0
        self._states_TD: Tensor | None = None

    def __len__(self) -> int:
        """Examples that are kept."""
        return len(self._rows)

    def with_states(self, batch: TaskBatch, device: torch.device) -> TaskBatch:
        """Returns a batch of training examples, on the device, that starts behind the trunk.

        The first call computes everything that is kept: the weights must be loaded by then. Called in evaluation mode.
        """
        assert not self._model.training, "dropout would be kept"
        if self._states_TD is None:
            self._states_TD = self._fill(device)
        return replace(batch.to(device), trunk_BSD=self._states(batch, device))

    def _states(self, batch: TaskBatch, device: torch.device) -> Tensor:
        if not bool(batch.example_mask_B.all()):  # a placeholder
            return self._model.trunk(batch.to(device))
        store, kept_TD = self._pools.store, self._states_TD
        assert kept_TD is not None
        rows_B = store.first_row_of_task[batch.task_ids_B.numpy()] + batch.example_ids_B.numpy()
        first_B = self._first_token_N[rows_B]
        lengths_B, known_B = store.lengths_N[rows_B], first_B >= 0
        states_BSD = kept_TD.new_zeros(*batch.input_ids_BS.shape, kept_TD.shape[1])
        mask_BS = batch.attention_mask_BS & torch.from_numpy(known_B).unsqueeze(1)
        spans = zip(first_B[known_B], lengths_B[known_B], strict=True)
        tokens = np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(at, at + length) for at, length in spans)])
        states_BSD[mask_BS] = kept_TD[torch.from_numpy(tokens)]
        states_BSD = states_BSD.to(device)
        if not known_B.all():
            rest = self._pools.scoring_batch(rows_B[~known_B])
            fresh_RSD = self._model.trunk(rest.to(device))
            states_BSD[torch.from_numpy(np.flatnonzero(~known_B)).to(device), : fresh_RSD.shape[1]] = fresh_RSD
        return states_BSD

    def _fill(self, device: torch.device) -> Tensor:
        """The states of all rows that are kept, ``[T, D]``, in their order."""
        states_TD = torch.empty(0)
        size, place = self._pools.scoring_batch_size, 0
        for first in range(0, len(self._rows), size):
            batch = self._pools.scoring_batch(self._rows[first : first + size]).to(device)
            found_TD = self._model.trunk(batch)[batch.attention_mask_BS].cpu()
            if not first:
                total = int(self._pools.store.lengths_N[self._rows].sum())
                states_TD = found_TD.new_empty(total, found_TD.shape[1])
            states_TD[place : place + len(found_TD)] = found_TD
            place += len(found_TD)
        _log.info(
            "frozen trunk: %d layers, states of %d training examples kept (%.0f MiB)",
            self._model.encoder.trunk_depth,
            len(self._rows),
            states_TD.nbytes / MIB,
        )
        return states_TD
