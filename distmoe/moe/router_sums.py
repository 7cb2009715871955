"""Sums over tokens from which all router losses follow, and their way over the ranks.

Shape letters: T tokens of this rank, E experts of a layer, M tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distmoe.moe.routing import Routing, TokenContext

AllReduce = Callable[[Tensor], Tensor]
"""Takes a vector and returns its sum over the ranks, the same on each of them; not differentiated through."""


@dataclass(frozen=True)
class RouterSums:
    """Sums over the tokens of one routed layer, float32 (float64 if the probabilities are).

    Attributes:
        num_tokens: N, scalar, no gradient.
        counts_E: Rows dispatched to each expert, sum k*N, no gradient.
        probs_E: Sum of probabilities.
        squared_lse: Sum of (logsumexp of the logits)^2, scalar.
        probs_ME: Sum of probabilities per task, or None if no loss reads it.
    """

    num_tokens: Tensor
    counts_E: Tensor
    probs_E: Tensor
    squared_lse: Tensor
    probs_ME: Tensor | None


def local_sums(routing: Routing, context: TokenContext, *, num_tasks: int | None) -> RouterSums:
    """Adds up this rank's tokens of one layer; ``num_tasks`` None leaves sums per task out."""
    probs_TE = routing.probs_TE
    num_tokens = probs_TE.new_full((), probs_TE.shape[0])
    ids = routing.expert_ids_TK.flatten()
    counts_E = probs_TE.new_zeros(probs_TE.shape[1]).index_add(0, ids, probs_TE.new_ones(()).expand(ids.shape))
    squared_lse = routing.logits_TE.logsumexp(dim=1).square().sum()
    if num_tasks is None:
        return RouterSums(num_tokens, counts_E, probs_TE.sum(dim=0), squared_lse, None)
    with torch.autocast(device_type=probs_TE.device.type, enabled=False):
        # A product instead of an addition by index: its order of additions does not change from run to run on CUDA.
        tasks_M = torch.arange(num_tasks, device=probs_TE.device)
        is_task_MT = (tasks_M.unsqueeze(1) == context.task_ids_T).to(probs_TE.dtype)
        probs_ME = is_task_MT @ probs_TE
    return RouterSums(num_tokens, counts_E, probs_ME.sum(dim=0), squared_lse, probs_ME)


def global_sums(
    routings: Sequence[Routing],
    context: TokenContext,
    *,
    num_tasks: int | None,
    all_reduce: AllReduce | None,
) -> list[RouterSums]:
    """Sums over all ranks, per layer, differentiable in this rank's part.

    1. Each rank packs the sums of all layers into one flat vector; its layout depends on shapes only.
    2. One all-reduce adds the vectors, outside autograd.
    3. ``global + (local - stop_gradient(local))`` has the global value, and the derivative 1 with respect to this
       rank's part. So a function of it has, on each rank, exactly this rank's share of the global gradient: the shares
       of all ranks add up to the whole, and no collective is needed in the backward pass.
    """
    local = [local_sums(routing, context, num_tasks=num_tasks) for routing in routings]
    if all_reduce is None:
        return local
    flat = torch.cat([_pack(sums) for sums in local])
    reduced = all_reduce(flat.detach().clone()) + (flat - flat.detach())
    return [
        _unpack(part, like) for part, like in zip(reduced.split([_size(sums) for sums in local]), local, strict=True)
    ]


def _pack(sums: RouterSums) -> Tensor:
    probs = sums.probs_E if sums.probs_ME is None else sums.probs_ME.flatten()
    return torch.cat([sums.num_tokens.view(1), sums.squared_lse.view(1), sums.counts_E, probs])


def _size(sums: RouterSums) -> int:
    probs = sums.probs_E if sums.probs_ME is None else sums.probs_ME
    return 2 + sums.counts_E.numel() + probs.numel()


def _unpack(flat: Tensor, like: RouterSums) -> RouterSums:
    num_experts = like.counts_E.numel()
    num_tokens, squared_lse, counts_E, probs = flat.split([1, 1, num_experts, flat.numel() - 2 - num_experts])
    probs_ME = None if like.probs_ME is None else probs.view_as(like.probs_ME)
    probs_E = probs if probs_ME is None else probs_ME.sum(dim=0)
    return RouterSums(num_tokens.squeeze(0), counts_E, probs_E, squared_lse.squeeze(0), probs_ME)


def by_pool(values_E: Tensor, pool_sizes: Sequence[int]) -> list[Tensor]:
    """Views ``[task groups, experts of each]``: a single one where all pools are equally large, else one per pool."""
    if len(set(pool_sizes)) == 1:
        return [values_E.view(len(pool_sizes), -1)]
    return [part.unsqueeze(0) for part in values_E.split(list(pool_sizes))]
