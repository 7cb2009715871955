"""How alike tasks use a layer that they share: for models in which no task has a layer of its own.

CKA pairs the outputs of two layers on the same examples. Where there is one layer, every pair of outputs is equal and
says nothing. What still differs is which directions of the layer's output each task's *own* examples vary along::

    similarity(s, t) = <C_s, C_t> / (|C_s| |C_t|),      C_t = covariance of the features of task t's examples

It is CKA's formula with independent samples in place of paired ones, and as free of bias: ``<C_s, C_t>`` is unbiased
for independent samples, ``|C_t|^2`` is estimated as in unbiased HSIC. It compares inputs as the model sees them. Two
tasks that ask different questions about the same texts are alike in it.

Shape letters: N examples of a task, D width, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distmoe.structure.cka import centred_grams, check_num_examples


def usage_similarity(features: Sequence[Tensor]) -> Tensor:
    """Similarities of tasks from the features of their own examples, ``[T, T]`` float64, diagonal 1.

    0 means unrelated directions. The estimate is rounded down to 1: samples that are not independent, because two
    tasks have texts in common, would exceed it.

    Args:
        features: ``[N_t, D]`` per task; the numbers of examples may differ.

    Raises:
        DataError: If a task has fewer than four examples.
    """
    covariances, norms = [], []
    for own_ND in features:
        num_examples = len(own_ND)
        check_num_examples(num_examples)
        own_ND = own_ND.double()
        centred_ND = own_ND - own_ND.mean(dim=0)
        covariances.append((centred_ND.T @ centred_ND / (num_examples - 1)).flatten())
        squared = centred_grams(own_ND).square().sum() / (num_examples * (num_examples - 3))
        norms.append(squared.clamp_min(torch.finfo(torch.float64).tiny).sqrt())
    stacked, scale_T = torch.stack(covariances), torch.stack(norms)
    values_TT = (stacked @ stacked.T / (scale_T[:, None] * scale_T)).clamp(max=1.0)
    return values_TT.fill_diagonal_(1.0)
