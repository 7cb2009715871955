"""What one task computes in a routed layer, as an ordinary feed-forward part.

Where the gate reads the task alone (`task`, `fixed`), a task's experts and their combine weights are constants. Experts
side by side are one wider feed-forward part, with the weights in the output matrix::

    sum_k p_k (act(x A_k^T + a_k) B_k^T + b_k)  =  act(x [A_1; A_2]^T + [a_1 a_2]) [p_1 B_1, p_2 B_2]^T + sum_k p_k b_k

(gated parts likewise, without biases), and the always-on shared expert is one more term with weight 1. With one expert
of weight 1 nothing is computed: the expert's tensors are the result.

Shape letters: F width, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distmoe.checkpoint.upcycle import PARTS, FeedForwardWeights
from distmoe.moe.experts import ExpertPool
from distmoe.moe.gates.routes import routes_by_task
from distmoe.moe.layer import RoutedFeedForward
from distmoe.nn.feed_forward import FeedForward


@torch.no_grad()
def folded(routed: RoutedFeedForward, *, task_id: int) -> FeedForwardWeights:
    """Returns the dense equivalent of a whole routed layer for one task, of width K * expert width + shared width.

    Args:
        routed: All experts of all task groups, on this process.
        task_id: The task.

    Raises:
        ConfigError: If routes of its gate depend on the tokens.
    """
    routing = routes_by_task(routed.gate)
    places = [
        (pool, row) for pool in routed.pools.values() if isinstance(pool, ExpertPool) for row in range(pool.num_experts)
    ]
    terms: list[tuple[Tensor, FeedForward | ExpertPool, int | None]] = []
    for expert, weight in zip(routing.expert_ids_TK[task_id].tolist(), routing.weights_TK[task_id], strict=True):
        terms.append((weight, *places[expert]))
    if routed.shared_mlp is not None:
        terms.append((torch.ones(()), routed.shared_mlp, None))
    parts = [(weight, _weights(source, row)) for weight, source, row in terms]
    gated = parts[0][1].gated
    w_out = torch.cat([weight * one.w_out for weight, one in parts], dim=1)
    if gated:  # gates of all terms, then the factors that they multiply
        halves = zip(*(one.w_in.chunk(2) for _, one in parts), strict=True)
        return FeedForwardWeights(torch.cat([row for half in halves for row in half]), None, w_out, None)
    return FeedForwardWeights(
        w_in=torch.cat([one.w_in for _, one in parts]),
        b_in=torch.cat([one.b_in for _, one in parts if one.b_in is not None]),
        w_out=w_out,
        b_out=torch.stack([weight * one.b_out for weight, one in parts if one.b_out is not None]).sum(0),
    )


def _weights(source: FeedForward | ExpertPool, row: int | None) -> FeedForwardWeights:
    """The tensors of a dense part, or of one expert."""
    found = {part: getattr(source, part) for part in PARTS}
    return FeedForwardWeights(**{part: t if t is None or row is None else t[row] for part, t in found.items()})
