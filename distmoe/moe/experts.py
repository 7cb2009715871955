"""The experts of one task group that live on this rank, as stacked tensors.

Shape letters: R rows sorted by expert, e experts on this rank, D model width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from distmoe.errors import ParallelError
from distmoe.moe.activations import expert_activation
from distmoe.moe.expert_mlp import expert_mlp
from distmoe.moe.expert_weights import ExpertWeights
from distmoe.moe.segments import Segments, grouped_mm_works
from distmoe.nn.init import init_normal_

Kernel = Literal["auto", "grouped_mm", "loop"]

# Up to how many experts on a rank the loop wins. CUDA: TransformerEngine #2939 saw plain matmuls twice as fast with
# few large experts. CPU: 0.99 against 1.04 times a dense part at 8 experts, 1.16 against 1.33 at 16, 1.52 against 1.38
# at 32 (D 128, F 512, 2,048 rows, biases; torch 2.13).
_LOOP_UP_TO = {"cpu": 16, "cuda": 4}


class ExpertPool(nn.Module):
    """Feed-forward experts ``first_expert .. first_expert + e - 1`` of a task group with ``num_experts`` experts.

    Parameters: ``w_in [e, F, D]``, ``b_in [e, F]``, ``w_out [e, D, F]``, ``b_out [e, D]``: one row of each is a
    :class:`distmoe.nn.feed_forward.FeedForward`. With activation ``swiglu``, ``w_in [e, 2F, D]`` packs gate (first)
    and up, and there are no biases. Call :meth:`reset` or load values before use.

    Args:
        num_experts: Experts of the task group over all ranks of a block.
        ep_rank: Position of this rank in its block.
        ep_size: Ranks of the block; each holds ``num_experts / ep_size`` consecutive experts.
        hidden_size: D.
        intermediate_size: F of one expert.
        activation: Name in :data:`distmoe.moe.activations.EXPERT_ACTIVATIONS`.
        kernel: ``grouped_mm`` needs no segment lengths on the host; ``loop`` works for every dtype and width;
            ``auto`` takes the faster one that works.

    Raises:
        ParallelError: If ``ep_size`` does not divide ``num_experts``.
    """

    def __init__(
        self,
        *,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        activation: str = "gelu",
        ep_rank: int = 0,
        ep_size: int = 1,
        kernel: Kernel = "auto",
    ) -> None:
        super().__init__()
        if num_experts % ep_size:
            raise ParallelError(
                "the experts of a task group cannot be dealt evenly to the ranks of a block",
                got=f"{num_experts} experts on {ep_size} ranks",
                expected=f"a multiple of {ep_size}",
                remedy="change model.moe.num_experts or parallel.ep_size",
            )
        self.num_experts = num_experts
        self.num_local = num_experts // ep_size
        self.first_expert = ep_rank * self.num_local
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.kernel = kernel
        self.act = expert_activation(activation)
        gated = self.act.gated
        width_in = 2 * intermediate_size if gated else intermediate_size
        self.w_in = nn.Parameter(torch.empty(self.num_local, width_in, hidden_size))
        self.w_out = nn.Parameter(torch.empty(self.num_local, hidden_size, intermediate_size))
        self.b_in: nn.Parameter | None
        self.b_out: nn.Parameter | None
        self.register_parameter("b_in", None if gated else nn.Parameter(torch.empty(self.num_local, width_in)))
        self.register_parameter("b_out", None if gated else nn.Parameter(torch.empty(self.num_local, hidden_size)))

    def reset(self, seed: int, name: str, std: float) -> None:
        """Fresh weights N(0, std^2), biases zero.

        Every expert draws from the stream of its parameter's name and its index in the task group, so a shard holds
        the same numbers as the corresponding slice of the whole pool, whatever the ranks.

        Args:
            seed: Seed of the run.
            name: Full dotted name of this module.
            std: Standard deviation of the weights.
        """
        for key in ("w_in", "w_out"):
            for local, weight in enumerate(getattr(self, key).unbind(0)):
                init_normal_(weight, seed=seed, name=f"{name}.{key}", std=std, index=self.first_expert + local)
        for bias in (self.b_in, self.b_out):
            if bias is not None:
                nn.init.zeros_(bias)

    def uses_loop(self, device: torch.device) -> bool:
        """Whether :meth:`forward` wants ``host_counts`` on this device (without them it asks for a host sync)."""
        if not grouped_mm_works(self._compute_dtype(device), self.hidden_size, self.intermediate_size):
            return True
        if self.kernel != "auto":
            return self.kernel == "loop"
        return self.num_local <= _LOOP_UP_TO.get(device.type, 0)

    def forward(self, rows_RD: Tensor, counts_e: Tensor, host_counts: Sequence[int] | None = None) -> Tensor:
        """Sends each row through its expert.

        Args:
            rows_RD: Rows sorted by local expert; R may be 0.
            counts_e: Rows of each local expert, int64, on the rows' device; they sum to R.
            host_counts: The same numbers on the host, if they are known there.

        Returns:
            ``[R, D]`` in the dtype of the parameters (or of autocast).
        """
        dtype = self._compute_dtype(rows_RD.device)
        num_rows = rows_RD.shape[0]
        if self.uses_loop(rows_RD.device):
            lengths = counts_e.tolist() if host_counts is None else host_counts
            segments = Segments.looped(counts_e, num_rows, lengths)
        else:
            segments = Segments(counts_e, num_rows)
        # grouped_mm ignores autocast: everything is brought to one dtype here.
        weights = ExpertWeights(self.w_in, self.b_in, self.w_out, self.b_out).to(dtype)
        return expert_mlp(rows_RD.to(dtype), weights, segments=segments, activation=self.act)

    def _compute_dtype(self, device: torch.device) -> torch.dtype:
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return self.w_in.dtype

    def extra_repr(self) -> str:
        last = self.first_expert + self.num_local - 1
        return f"{self.first_expert}..{last} of {self.num_experts}, {self.hidden_size} -> {self.intermediate_size}"
