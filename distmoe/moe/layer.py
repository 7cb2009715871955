"""The routed feed-forward part of a Transformer layer: gate, dispatch, pools, combine.

Shape letters: T tokens (padding removed), D model width, E experts of the layer over all task groups, K experts per
token, R rows at this rank's experts. ``README.md`` beside this file tells the life of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distmoe.moe.dispatch import Dispatcher
from distmoe.moe.experts import ExpertPool
from distmoe.moe.gates.base import Gate
from distmoe.moe.routing import Routing, TokenContext
from distmoe.nn.feed_forward import FeedForward
from distmoe.parallel.traffic import TrafficCounter


class RoutedFeedForward(nn.Module):
    """Replaces a dense feed-forward part; the residual connection is the caller's.

    Every rank of a block runs the gate, every hosted pool and every exchange at every step, in the same order, also
    without a single token: autograd and DeepSpeed's hooks count on it.

    Args:
        gate: Chooses experts by their index in the layer.
        pools: Experts of each hosted task group, by task group (``g0``), in hosting order.
        dispatcher: Brings rows to the pools and back.
        slot_of_E: Slot in the block of each expert of the layer.
        shared_mlp: Dense part that every token passes in addition; None: no such part.
        activation_checkpointing: Recompute the pools' activations in backward. The exchanges stand outside and are
            never repeated.
        traffic: What the dispatcher's exchanges sent, for statistics.
    """

    def __init__(
        self,
        *,
        gate: Gate,
        pools: Mapping[str, ExpertPool],
        dispatcher: Dispatcher,
        slot_of_E: Sequence[int],
        shared_mlp: FeedForward | None = None,
        activation_checkpointing: bool = False,
        traffic: TrafficCounter | None = None,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.pools = nn.ModuleDict(pools)
        self.shared_mlp = shared_mlp
        self.dispatcher = dispatcher
        self.activation_checkpointing = activation_checkpointing
        self.traffic = TrafficCounter() if traffic is None else traffic
        # Not persistent: it follows from the placement, which a checkpoint must not depend on.
        self.slot_of_E: Tensor
        self.register_buffer("slot_of_E", torch.tensor(slot_of_E), persistent=False)

    def forward(self, x_TD: Tensor, context: TokenContext) -> tuple[Tensor, Routing]:
        """Routes T tokens, also T = 0.

        Args:
            x_TD: Token states.
            context: Task and sequence of each token.

        Returns:
            ``y_TD`` in the dtype of ``x_TD``, and the routing; with a capacity, its ``dropped`` is filled in.
        """
        routing: Routing = self.gate(x_TD, context)
        slots_TK = self.slot_of_E[routing.expert_ids_TK]
        host_counts = any(pool.uses_loop(x_TD.device) for pool in self._pools())
        rows_RD, plan = self.dispatcher.dispatch(x_TD, slots_TK, routing.weights_TK, host_counts=host_counts)
        outputs = [
            self._run(pool, *inputs)
            for pool, inputs in zip(self._pools(), plan.pools(rows_RD, self.dispatcher.layout), strict=True)
        ]
        rows_RD = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        y_TD = self.dispatcher.combine(rows_RD, plan)
        if self.shared_mlp is not None:
            y_TD = y_TD + self.shared_mlp(x_TD)
        if plan.dropped is not None:
            routing = replace(routing, dropped=plan.dropped)
        return y_TD.to(x_TD.dtype), routing

    def _pools(self) -> list[ExpertPool]:
        return list(self.pools.values())  # type: ignore[arg-type]

    def _run(self, pool: ExpertPool, rows_RD: Tensor, counts_e: Tensor, host_counts: tuple[int, ...] | None) -> Tensor:
        if not self.activation_checkpointing or not torch.is_grad_enabled():
            return pool(rows_RD, counts_e, host_counts)
        # Experts draw no random numbers, so there is no generator state to keep.
        return checkpoint(pool, rows_RD, counts_e, host_counts, use_reentrant=False, preserve_rng_state=False)
