"""Token means ignore padding, whatever it holds."""

from __future__ import annotations

import torch

from distmoe.structure.features import token_means

NAN = float("nan")


def test_the_mean_of_real_tokens_by_hand():
    """Two sequences of 3 positions, width 2::

    row 0: (1, 2) (3, 6)  pad      -> (2, 4)
    row 1: (5, 7)  pad    pad      -> (5, 7)
    """
    hidden = torch.tensor([[[1.0, 2], [3, 6], [NAN, NAN]], [[5, 7], [NAN, 1], [9, 9]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert token_means(hidden, mask).tolist() == [[2.0, 4.0], [5.0, 7.0]]


def test_padding_gets_no_gradient():
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    token_means(hidden, mask).sum().backward()
    assert torch.equal(hidden.grad[~mask], torch.zeros(3, 4))
    assert torch.equal(hidden.grad[0, :2], torch.full((2, 4), 0.5))


def test_a_row_without_tokens_gives_zeros():
    assert token_means(torch.full((1, 2, 3), NAN), torch.zeros(1, 2)).tolist() == [[0.0, 0.0, 0.0]]


def test_half_precision_is_averaged_in_single():
    """300 ones in bfloat16 would add up to 256."""
    means = token_means(torch.ones(1, 300, 1, dtype=torch.bfloat16), torch.ones(1, 300))
    assert means.dtype == torch.float32
    assert means.item() == 1.0
