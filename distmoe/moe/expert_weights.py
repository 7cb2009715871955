"""The stacked tensors of a pool's experts, or their gradients, as one value.

Shape letters: e experts on this rank, D model width, F feed-forward width, H = F or, with a gated activation, 2F.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class ExpertWeights(NamedTuple):
    """``w_in [e, H, D]``, ``b_in [e, H]``, ``w_out [e, D, F]``, ``b_out [e, D]``; biases may be absent."""

    w_in: Tensor
    b_in: Tensor | None
    w_out: Tensor
    b_out: Tensor | None

    def of(self, expert: int) -> ExpertWeights:
        """One expert's tensors, as views."""
        return self._each(lambda tensor: tensor[expert])

    def empty_like(self) -> ExpertWeights:
        return self._each(torch.empty_like)

    def zeros_like(self) -> ExpertWeights:
        return self._each(torch.zeros_like)

    def to(self, dtype: torch.dtype) -> ExpertWeights:
        return self._each(lambda tensor: tensor.to(dtype))

    def _each(self, function: Callable[[Tensor], Tensor]) -> ExpertWeights:
        return ExpertWeights(
            function(self.w_in),
            None if self.b_in is None else function(self.b_in),
            function(self.w_out),
            None if self.b_out is None else function(self.b_out),
        )
