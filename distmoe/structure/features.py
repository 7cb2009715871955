"""One feature vector per sequence, from the output of a layer.

Structural learning reads a layer's *output after the residual addition*: it separates planted task clusters almost
perfectly (AUC 0.99 to 1.00), the branch alone does not (0.69 to 1.00 where data are few).

Shape letters: B sequences, S positions, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_means(hidden_BSD: Tensor, mask_BS: Tensor) -> Tensor:
    """Mean over the real tokens of each sequence, ``[B, D]``, at least in float32; zeros where there is none.

    Padding never enters, whatever it contains: up to rounding, a sequence has the same feature in a
    shorter and in a longer batch.

    Args:
        hidden_BSD: Outputs of a layer after its residual addition.
        mask_BS: True at real tokens.
    """
    hidden_BSD = hidden_BSD.to(torch.promote_types(hidden_BSD.dtype, torch.float32))
    mask_BS = mask_BS.bool()
    total_BD = hidden_BSD.masked_fill(~mask_BS.unsqueeze(-1), 0.0).sum(dim=1)
    return total_BD / mask_BS.sum(dim=1, keepdim=True).clamp_min(1)
