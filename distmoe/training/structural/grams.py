"""What the members of a merge see: Gram matrices of the inputs and of the hidden units of their experts.

Tasks bring different texts to the layers that are to be joined. The joined expert that comes closest to each member on
the member's own inputs is a least-squares problem, and these matrices are all that it needs
(:mod:`distmoe.structure.least_squares`).

Shape letters: R rows at the experts of this rank, D model width, F hidden units; C = D + 1 or F + 1 with a bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from distmoe.models.multitask import MultiTaskEncoder
from distmoe.moe.experts import ExpertPool
from distmoe.moe.layer import RoutedFeedForward
from distmoe.structure.least_squares import Grams, input_gram
from distmoe.structure.plan import Merge
from distmoe.tasks import TaskGrouping
from distmoe.tasks.grouping import TaskGroup
from distmoe.training.agreement import is_distributed
from distmoe.training.structural.probe import ProbeSet

MemberGrams = dict[tuple[int, TaskGroup], tuple[Grams, ...]]
"""Routed layer and member of a merge -> the Gram matrices of each of its experts."""


@dataclass
class _Sums:
    """Of one pool: ``[experts of the task group, C, C]`` float64, zero where another rank has the expert."""

    inputs: Tensor
    hidden: Tensor

    def add(self, pool: nn.Module, arguments: tuple) -> None:
        assert isinstance(pool, ExpertPool)
        rows_RD, counts_e = arguments[0], arguments[1].tolist()
        for local, own_RD in enumerate(rows_RD.float().split(counts_e)):
            bias = None if pool.b_in is None else pool.b_in[local].float()
            hidden_RF = pool.act.apply(F.linear(own_RD, pool.w_in[local].float(), bias))
            expert = pool.first_expert + local
            self.inputs[expert] += input_gram(own_RD, bias=pool.b_in is not None)
            self.hidden[expert] += input_gram(hidden_RF, bias=pool.b_out is not None)


@torch.no_grad()
def member_grams(
    model: MultiTaskEncoder,
    grouping: TaskGrouping,
    merges: Sequence[Merge],
    *,
    probe: ProbeSet,
    model_layers: tuple[int, ...],
    rank: int,
    num_ranks: int,
    device: torch.device,
) -> MemberGrams:
    """Of all members of merges, on the probe set, each sequence on its own task's path. Collective.

    Args:
        model: Before the merges, in evaluation mode; this rank hosts every task group.
        grouping: Before the merges.
        merges: Any, also such that exclude each other.
        probe: Sequences.
        model_layers: Model layer of each routed layer.
        rank: This rank.
        num_ranks: Ranks that share the batches.
        device: Of the model.
    """
    sums: dict[tuple[int, TaskGroup], _Sums] = {}
    hooks = []
    for layer, member in dict.fromkeys((merge.layer, member) for merge in merges for member in merge.members):
        routed = model.encoder.layers[model_layers[layer]].feed_forward
        assert isinstance(routed, RoutedFeedForward)
        pool = routed.pools[f"g{grouping.layers[layer].index(member)}"]
        assert isinstance(pool, ExpertPool)
        width, units = pool.hidden_size + (pool.b_in is not None), pool.intermediate_size + (pool.b_out is not None)
        shapes = ((pool.num_experts, width, width), (pool.num_experts, units, units))
        own = _Sums(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))
        sums[layer, member] = own
        hooks.append(pool.register_forward_pre_hook(own.add))
    try:
        for first in range(0, probe.num_batches, num_ranks):
            # Every rank runs every round: experts of a block may exchange tokens.
            index = first + rank
            batch = probe.batch(index) if index < probe.num_batches else probe.no_rows(0)
            model(batch.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    if is_distributed():
        for own in sums.values():
            dist.all_reduce(own.inputs)
            dist.all_reduce(own.hidden)
    return {
        key: tuple(Grams(*pair) for pair in zip(own.inputs.cpu(), own.hidden.cpu(), strict=True))
        for key, own in sums.items()
    }
