"""The same sequences through the same layer of several task groups: what structural learning compares.

Shape letters: B sequences, S positions, D model width, G compared task groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distmoe.data.batch import TaskBatch
from distmoe.models.encoder import Encoder
from distmoe.moe.routing import TokenContext
from distmoe.structure.features import token_means


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        batch: Sequences; whose tasks they are does not matter.
        layer: Model layer at which the task groups are apart. They share everything above it.
        tasks: One task of each compared task group.
        guide: The task as which the layers above are run; None: the first of ``tasks``. Ranks that compare different
            task groups of one frontier must name the same: their gates may choose different experts for other tasks.
    """

    batch: TaskBatch
    layer: int
    tasks: tuple[int, ...]
    guide: int | None = None


def compared_features(encoder: Encoder, comparison: Comparison) -> Tensor:
    """Mean over tokens of the layer's output after its residual addition, ``[G, B, D]`` at least float32.

    The layers above are run once, as the guide; then the layer runs on G copies of its input, one for each task
    group, in one pass.
    """
    batch, num_copies = comparison.batch, len(comparison.tasks)
    num_rows, length = batch.input_ids_BS.shape
    guide = comparison.tasks[0] if comparison.guide is None else comparison.guide
    x_BSD = _states_before(encoder, batch, comparison.layer, guide)
    mask_B11S = batch.attention_mask_BS[:, None, None, :]
    shifts_G1 = torch.arange(num_copies, device=x_BSD.device).unsqueeze(1) * (num_rows * length)
    tokens_X = (shifts_G1 + batch.token_index_T).flatten()
    context = _context(tokens_X, comparison.tasks, num_rows=num_rows, length=length)
    y_XSD, _ = encoder.layers[comparison.layer](
        x_BSD.repeat(num_copies, 1, 1), mask_B11S.repeat(num_copies, 1, 1, 1), tokens_X, context
    )
    means_XD = token_means(y_XSD, batch.attention_mask_BS.repeat(num_copies, 1))
    return means_XD.view(num_copies, num_rows, -1)


@torch.no_grad()
def states_before(encoder: Encoder, batch: TaskBatch, layer: int, task: int) -> Tensor:
    """What a model layer gets as input, ``[B, S, D]``, with all sequences on one task's path."""
    return _states_before(encoder, batch, layer, task)


def _states_before(encoder: Encoder, batch: TaskBatch, layer: int, task: int) -> Tensor:
    num_rows, length = batch.input_ids_BS.shape
    x_BSD: Tensor = encoder.embeddings(batch.input_ids_BS, batch.attention_mask_BS, batch.token_type_ids_BS)
    mask_B11S = batch.attention_mask_BS[:, None, None, :]
    context = _context(batch.token_index_T, (task,), num_rows=num_rows, length=length)
    for above in encoder.layers[:layer]:
        x_BSD, _ = above(x_BSD, mask_B11S, batch.token_index_T, context)
    return x_BSD


def _context(tokens_T: Tensor, tasks: Sequence[int], *, num_rows: int, length: int) -> TokenContext:
    """Tokens of ``len(tasks)`` copies of the sequences, copy after copy, one task each."""
    sequence_ids_T = tokens_T.div(length, rounding_mode="floor")
    tasks_G = torch.tensor(tasks, device=tokens_T.device)
    copies_T = sequence_ids_T.div(num_rows, rounding_mode="floor")
    return TokenContext(tasks_G[copies_T], sequence_ids_T, num_rows * len(tasks))
