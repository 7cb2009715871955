"""Auxiliary losses of routers, over the tokens of all ranks of a micro-step, with one collective for all layers.

Every loss is a function of sums over tokens (counts, summed probabilities, ...). A rank adds up its own tokens, the
sums of all layers travel in one flat vector, and the loss follows from the global sums. A loss computed per rank or per
task would be another loss: it would push every rank's, or every task's, tokens apart and so fight specialisation.

Padding never enters: tokens are removed before the gate. Formulas: docs/gates.md; sources at each function.

Shape letters: T tokens of this rank, E experts of a layer, K experts per token, M tasks, L routed layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distmoe.moe.config import AuxiliaryLossConfig
from distmoe.moe.router_sums import AllReduce, RouterSums, by_pool, global_sums
from distmoe.moe.routing import Routing, TokenContext


@dataclass(frozen=True)
class RouterLosses:
    """Auxiliary losses of one micro-step.

    Attributes:
        total: Weighted sum over losses and routed layers (Switch adds each layer's loss to the total), to be added to
            the rank's task loss. Its value is that of the global batch, equal on all ranks; its gradient is
            ``world_size`` times this rank's part, so that the mean over ranks, which data parallelism takes, is the
            gradient of the global batch's loss.
        by_layer: Loss name -> unweighted value per routed layer [L], detached, on the device. Only losses with a
            weight occur.
    """

    total: Tensor
    by_layer: dict[str, Tensor]


def router_losses(
    routings: Sequence[Routing],
    context: TokenContext,
    *,
    weights: AuxiliaryLossConfig,
    num_tasks: int,
    pool_sizes: Sequence[Sequence[int]],
    world_size: int = 1,
    all_reduce: AllReduce | None = None,
) -> RouterLosses:
    """Computes the losses that have a weight.

    Which sums are made and sent depends on ``weights`` and shapes only, so every rank takes part in the same
    collective (none at all without weights), also with zero tokens.

    Args:
        routings: What the gates decided, per routed layer.
        context: Task of each token, the same for all layers.
        weights: Weight per loss; losses with weight 0 are not computed.
        num_tasks: M.
        pool_sizes: Experts of each task group, per routed layer; experts stand in the order of their task groups.
        world_size: Ranks over which gradients will be averaged.
        all_reduce: Returns the sum of a vector over these ranks; None on one process.
    """
    assert all_reduce is not None or world_size == 1, "several ranks need an all_reduce"
    names = [name for name in _FORMULAS if getattr(weights, name) > 0]
    if not names or not routings:
        return RouterLosses(context.task_ids_T.new_zeros((), dtype=torch.float32), {})
    sums = global_sums(
        routings,
        context,
        num_tasks=num_tasks if weights.mutual_information > 0 else None,
        all_reduce=all_reduce,
    )
    by_layer = {
        name: torch.stack([_FORMULAS[name](of, sizes) for of, sizes in zip(sums, pool_sizes, strict=True)])
        for name in names
    }
    total = torch.stack([getattr(weights, name) * by_layer[name].sum() for name in names]).sum()
    # Data parallelism divides the sum of the ranks' gradients by their number; the value stays as it is.
    total = total + (world_size - 1) * (total - total.detach())
    return RouterLosses(total, {name: values.detach() for name, values in by_layer.items()})


def balance_loss(sums: RouterSums, pool_sizes: Sequence[int]) -> Tensor:
    """``E sum_i F_i P_i`` (Switch Transformer, eq. 4-6), F_i = share of dispatched rows, P_i = mean probability.

    F has no gradient. With several task groups the loss is taken inside each one, where there is a choice, and
    averaged over their tokens. 1 where F or P is uniform; that is no lower bound: E=2 with
    p = (.51,.49), (.51,.49), (0,1) gives 0.893.
    """
    parts = []
    for counts_GE, probs_GE in zip(by_pool(sums.counts_E, pool_sizes), by_pool(sums.probs_E, pool_sizes), strict=True):
        shares_GE = counts_GE / counts_GE.sum(dim=1, keepdim=True).clamp(min=1)
        # P_i of a task group is probs / its tokens, its weight is its tokens / all tokens: the group's tokens cancel.
        parts.append(counts_GE.shape[1] * (shares_GE * probs_GE).sum())
    return torch.stack(parts).sum() / sums.num_tokens.clamp(min=1)


def z_loss(sums: RouterSums, pool_sizes: Sequence[int]) -> Tensor:
    """``mean (logsumexp z)^2``, which keeps logits small (ST-MoE, arXiv 2202.08906, eq. 5)."""
    return sums.squared_lse / sums.num_tokens.clamp(min=1)


def importance_loss(sums: RouterSums, pool_sizes: Sequence[int]) -> Tensor:
    """``CV^2(importance) + CV^2(load)`` (Shazeer et al. 2017, eq. 7 and 11); importance = summed probabilities.

    The load counts rows, so its term has a value but no gradient: the smooth estimator of the paper exists only for
    learned noise. Inside each task group, averaged over their tokens. 0 when balanced, E/k - 1 + E - 1 at most for
    one-hot probabilities.
    """
    parts = []
    for counts_GE, probs_GE in zip(by_pool(sums.counts_E, pool_sizes), by_pool(sums.probs_E, pool_sizes), strict=True):
        per_task_group_G = _squared_variation(probs_GE) + _squared_variation(counts_GE)
        parts.append((per_task_group_G * counts_GE.sum(dim=1)).sum())
    return torch.stack(parts).sum() / sums.counts_E.sum().clamp(min=1)


def mutual_information_loss(sums: RouterSums, pool_sizes: Sequence[int]) -> Tensor:
    """``-sum_{t,i} P(t,i) log(P(t,i) / (P(t) P(i)))`` (Mod-Squad, arXiv 2212.08066), P(t,i) = summed p_i of task t / N.

    0 for uniform routing, 0 as well when all tokens go to one expert, -log T' for T' equally large blocks of tasks with
    experts of their own. It is no barrier to collapse: pair it with the balance loss.
    """
    assert sums.probs_ME is not None, "sums were made without tasks"
    joint_ME = sums.probs_ME / sums.num_tokens.clamp(min=1)
    task_M1, own_1E = joint_ME.sum(dim=1, keepdim=True), joint_ME.sum(dim=0, keepdim=True)
    # An absent task, or an expert outside the task's group, has P = 0: p log p must be 0 there with a finite gradient.
    return -(joint_ME * (_safe_log(joint_ME) - _safe_log(task_M1) - _safe_log(own_1E))).sum()


def _squared_variation(values_GE: Tensor) -> Tensor:
    """(standard deviation / mean)^2 over experts, per task group; 0 for a task group without tokens."""
    mean_G1 = values_GE.mean(dim=1, keepdim=True)
    variance_G = (values_GE - mean_G1).square().mean(dim=1)
    return variance_G / mean_G1.squeeze(1).square().clamp(min=torch.finfo(values_GE.dtype).tiny)


def _safe_log(value: Tensor) -> Tensor:
    return value.clamp(min=torch.finfo(value.dtype).tiny).log()


_FORMULAS: dict[str, Callable[[RouterSums, Sequence[int]], Tensor]] = {
    "balance": balance_loss,
    "z": z_loss,
    "importance": importance_loss,
    "mutual_information": mutual_information_loss,
}
