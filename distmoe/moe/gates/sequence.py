"""Gate `sequence`: all tokens of an example go to the same experts.

Shape letters: T tokens, B sequences, D model width, E experts, M tasks, U width of a task vector.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from distmoe.moe.gates.base import Gate, Granularity, take_rows
from distmoe.moe.gates.declared import router_dtype
from distmoe.moe.gates.setting import GateSetting
from distmoe.moe.gates.task_vectors import TaskVectors
from distmoe.moe.routing import TokenContext


class SequenceGate(Gate):
    """``z = mean_s(h_s) W^T + tau_t V^T`` over an example's real tokens (sentence-level experts; SMEAR's router input).

    Args:
        setting: What does not depend on the kind of gate.
        vector_size: Width of tau.
        hidden_size: Hidden width of the task MLP.
    """

    granularity: ClassVar[Granularity] = "sequence"

    def __init__(self, setting: GateSetting, *, vector_size: int, hidden_size: int) -> None:
        super().__init__(setting)
        self.task_vectors = TaskVectors(num_tasks=self.num_tasks, hidden_size=hidden_size, vector_size=vector_size)
        self.weight_ED = self.declare("weight_ED", self.num_experts, self.hidden_size, std=setting.router_std)
        self.weight_EU = self.declare("weight_EU", self.num_experts, vector_size, std=setting.router_std)

    def logits(self, x_TD: Tensor, context: TokenContext) -> Tensor:
        dtype = router_dtype(x_TD)
        mean_BD = sequence_means(x_TD, context)
        of_sequence_BE = F.linear(mean_BD, self.weight_ED.to(dtype))
        of_task_ME = F.linear(self.task_vectors(dtype), self.weight_EU.to(dtype))
        return take_rows(of_sequence_BE, context.sequence_ids_T) + take_rows(of_task_ME, context.task_ids_T)


def sequence_means(x_TD: Tensor, context: TokenContext) -> Tensor:
    """Mean state of each sequence's tokens, [B, D]; zeros for sequences without tokens (placeholders).

    Not an addition by index: on CUDA that adds in an order that changes from run to run, and means decide routes.
    """
    sequences = torch.arange(context.num_sequences + 1, device=x_TD.device)
    lengths_B = torch.searchsorted(context.sequence_ids_T, sequences).diff()
    sums_BD = torch.segment_reduce(x_TD, "sum", lengths=lengths_B, axis=0, unsafe=True, initial=0)
    return sums_BD / lengths_B.clamp(min=1).unsqueeze(1)
