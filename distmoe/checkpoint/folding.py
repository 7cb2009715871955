"""What one task computes in a routed layer, as an ordinary feed-forward part.

Where the gate reads the task alone (`task`, `fixed`), a task's experts and their combine weights are constants. Experts
side by side are one wider feed-forward part, with the weights in the output matrix::

    sum_k p_k (act(x A_k^T + a_k) B_k^T + b_k)  =  act(x [A_1; A_2]^T + [a_1 a_2]) [p_1 B_1, p_2 B_2]^T + sum_k p_k b_k

and the always-on shared expert is one more term with weight 1. With one expert of weight 1 nothing is computed: the
expert's tensors are the result.

Shape letters: F width, D model width.
"""

from __future__ import annotations

import torch

from distmoe.checkpoint.upcycle import FeedForwardWeights
from distmoe.moe.experts import ExpertPool
from distmoe.moe.gates.routes import routes_by_task
from distmoe.moe.layer import RoutedFeedForward


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
    terms = []
    for expert, weight in zip(routing.expert_ids_TK[task_id].tolist(), routing.weights_TK[task_id], strict=True):
        pool, row = places[expert]
        assert pool.b_in is not None
        assert pool.b_out is not None
        terms.append((weight, FeedForwardWeights(pool.w_in[row], pool.b_in[row], pool.w_out[row], pool.b_out[row])))
    if (shared := routed.shared_mlp) is not None:
        terms.append((torch.ones(()), FeedForwardWeights(shared.w_in, shared.b_in, shared.w_out, shared.b_out)))
    return FeedForwardWeights(
        w_in=torch.cat([one.w_in for _, one in terms]),
        b_in=torch.cat([one.b_in for _, one in terms]),
        w_out=torch.cat([weight * one.w_out for weight, one in terms], dim=1),
        b_out=torch.stack([weight * one.b_out for weight, one in terms]).sum(0),
    )
