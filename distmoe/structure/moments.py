"""Sums over examples from which unbiased CKA follows: additive over batches and ranks.

For features x, y of one example in two networks, CKA needs only sums of products of them, so a probe set of any length
is streamed in constant memory and ranks exchange sums instead of features. Everything is float64.

The sums are not robust against a common offset of the features (an offset of 1000 costs ten digits), CKA does not
depend on it: one fixed reference is subtracted from all examples, the same in every batch and on every rank.

Shape letters: T feature sets (one per task or task group), N examples, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distmoe.structure.cka import check_num_examples

Gather = Callable[[Tensor], Sequence[Tensor]]
"""Every rank's tensor in order of rank, on every rank; all ranks call it with equal shapes."""

_CHUNK = 1 << 21  # float64 numbers gathered at once: 16 MiB per rank


@dataclass(frozen=True)
class PairMoments:
    """Sums over the examples seen, float64.

    Attributes:
        num_examples: n.
        products_TDTD: ``sum x_i x_j^T`` for all pairs (i, j).
        sums_TD: ``sum x_i``.
        weighted_TDT: ``[i, :, j]`` is ``sum x_i |x_j|^2``.
        squares_TT: ``sum |x_i|^2 |x_j|^2``.
        norms_T: ``sum |x_i|^2``.
    """

    num_examples: int
    products_TDTD: Tensor
    sums_TD: Tensor
    weighted_TDT: Tensor
    squares_TT: Tensor
    norms_T: Tensor

    @classmethod
    def of(cls, features_TND: Tensor, reference_TD: Tensor) -> PairMoments:
        """Sums over a batch; a batch without examples gives zeros.

        Args:
            features_TND: Features of the same N examples in T networks.
            reference_TD: Near the mean of the features; equal for all batches and ranks that will be added. The mean
                of the first rank's first batch serves well.
        """
        num_sets, num_examples, width = features_TND.shape
        x_TND = features_TND.double() - reference_TD.double().unsqueeze(1)
        x_NC = x_TND.transpose(0, 1).reshape(num_examples, num_sets * width)
        norms_NT = x_TND.square().sum(dim=2).T
        return cls(
            num_examples,
            (x_NC.T @ x_NC).view(num_sets, width, num_sets, width),
            x_TND.sum(dim=1),
            (x_NC.T @ norms_NT).view(num_sets, width, num_sets),
            norms_NT.T @ norms_NT,
            norms_NT.sum(dim=0),
        )

    def __add__(self, other: PairMoments) -> PairMoments:
        num_examples = self.num_examples + other.num_examples
        return PairMoments(num_examples, *(a + b for a, b in zip(self._sums, other._sums, strict=True)))

    def hsic(self) -> Tensor:
        """Unbiased HSIC with linear kernels of all pairs, ``[T, T]`` (Song et al. 2012, eq. 5, in sums)."""
        n = self.num_examples
        check_num_examples(n)
        sums, products = self.sums_TD, self.products_TDTD
        frobenius = products.square().sum(dim=(1, 3))
        cross = torch.einsum("id,idje,je->ij", sums, products, sums)
        weighted = torch.einsum("id,idj->ij", sums, self.weighted_TDT)
        off_diagonal = sums.square().sum(dim=1) - self.norms_T
        once = (cross - weighted - weighted.T + self.squares_TT) * (2 / (n - 2))
        twice = torch.outer(off_diagonal, off_diagonal) / ((n - 1) * (n - 2))
        return (frobenius - self.squares_TT + twice - once) / (n * (n - 3))

    def cka(self) -> Tensor:
        """Unbiased linear CKA of all pairs, ``[T, T]`` float64; 0 where features do not vary.

        Raises:
            DataError: With fewer than four examples.
        """
        hsic_TT = self.hsic()
        own_T = hsic_TT.diagonal()
        # Rounding leaves about eps^2 (trace/n)^2 of a constant feature set.
        varies_T = own_T > 1e-24 * (self.norms_T / self.num_examples).square()
        scale_T = torch.where(varies_T, own_T, 1.0).rsqrt() * varies_T
        return hsic_TT * torch.outer(scale_T, scale_T)

    @property
    def _sums(self) -> tuple[Tensor, ...]:
        return self.products_TDTD, self.sums_TD, self.weighted_TDT, self.squares_TT, self.norms_T


def ordered_sum(local: PairMoments, gather: Gather) -> PairMoments:
    """Sums every rank's moments in order of rank, so that all ranks hold the same bits.

    A reduction by the network may add in another order on each rank; equal plans need equal numbers. Steps:

    1. Every rank flattens its sums, the number of examples included.
    2. Piece by piece: gather, then add rank 0, 1, 2, ... on every rank. All ranks take part, without examples too.
    """
    parts = [torch.tensor([local.num_examples], dtype=torch.float64), *(part.flatten() for part in local._sums)]
    flat = torch.cat([part.to(local.norms_T.device) for part in parts])
    total = torch.cat([_sum_in_order(gather(piece)) for piece in flat.split(_CHUNK)])
    lengths = [1, *(part.numel() for part in local._sums)]
    assert sum(lengths) == total.numel(), "a rank gathered sums of another size"
    count, *sums = total.split(lengths)
    shaped = [piece.view_as(part) for piece, part in zip(sums, local._sums, strict=True)]
    return PairMoments(int(count.item()), *shaped)


def _sum_in_order(pieces: Sequence[Tensor]) -> Tensor:
    total = pieces[0].clone()
    for piece in pieces[1:]:
        total += piece
    return total
