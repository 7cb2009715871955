"""The tensors of one feed-forward part as a value: weights, or the optimizer's moments of them.

Hidden units have no order: permuting them in all four tensors leaves the function as it is.

Shape letters: D model width, F hidden units, H = F or, with a gated activation, 2F (gate first, then up).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeedForwardTensors:
    """One expert or dense feed-forward part.

    Attributes:
        w_in_HD: Input weights.
        b_in_H: Input bias, or None.
        w_out_DF: Output weights.
        b_out_D: Output bias, or None.
    """

    w_in_HD: Tensor
    b_in_H: Tensor | None
    w_out_DF: Tensor
    b_out_D: Tensor | None

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor | None], index: int | None = None) -> FeedForwardTensors:
        """From ``w_in, b_in, w_out, b_out`` by name; ``index`` picks one expert of stacked tensors."""

        def pick(key: str) -> Tensor | None:
            tensor = tensors.get(key)
            return tensor if tensor is None or index is None else tensor[index]

        w_in, w_out = pick("w_in"), pick("w_out")
        assert w_in is not None, "a feed-forward part has input weights"
        assert w_out is not None, "a feed-forward part has output weights"
        return cls(w_in, pick("b_in"), w_out, pick("b_out"))

    def by_name(self) -> dict[str, Tensor]:
        """The tensors that exist, under the names of the parameters."""
        named = {"w_in": self.w_in_HD, "b_in": self.b_in_H, "w_out": self.w_out_DF, "b_out": self.b_out_D}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def num_units(self) -> int:
        return self.w_out_DF.shape[1]

    @property
    def is_gated(self) -> bool:
        return self.w_in_HD.shape[0] == 2 * self.num_units

    def permuted(self, permutation_F: Tensor) -> FeedForwardTensors:
        """Puts hidden unit ``permutation_F[i]`` at place i: (P W1, P b1, W2 P^T), gate and up rows alike.

        Right for weights and for both Adam moments: they are element by element.
        """
        rows_H = torch.cat([permutation_F, permutation_F + self.num_units]) if self.is_gated else permutation_F
        b_in_H = None if self.b_in_H is None else self.b_in_H[rows_H]
        return FeedForwardTensors(self.w_in_HD[rows_H], b_in_H, self.w_out_DF[:, permutation_F], self.b_out_D)
