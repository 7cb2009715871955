"""Padded states through a routed layer, which sees real tokens only.

Shape letters: B sequences, S positions, N = B S, D model width, T real tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distmoe.data.batch import TaskBatch
from distmoe.moe.layer import RoutedFeedForward
from distmoe.moe.routing import Routing, TokenContext


def route_positions(
    routed: RoutedFeedForward, x_BSD: Tensor, token_index_T: Tensor, context: TokenContext
) -> tuple[Tensor, Routing]:
    """Routes the real tokens; padding gets zero, so it costs no expert and enters no statistic.

    Returns:
        ``[B, S, D]`` in the dtype of the routed layer's answer, and where the tokens went.
    """
    x_ND = x_BSD.flatten(0, 1)
    y_TD, routing = routed(x_ND.index_select(0, token_index_T), context)
    y_ND = torch.zeros_like(x_ND, dtype=y_TD.dtype).index_copy(0, token_index_T, y_TD)
    return y_ND.view_as(x_BSD), routing


def token_context(batch: TaskBatch) -> TokenContext:
    """Returns tasks and sequences of the batch's real tokens; no device synchronisation."""
    num_sequences, length = batch.input_ids_BS.shape
    sequence_ids_T = batch.token_index_T.div(length, rounding_mode="floor")
    return TokenContext(batch.task_ids_B.index_select(0, sequence_ids_T), sequence_ids_T, num_sequences)
