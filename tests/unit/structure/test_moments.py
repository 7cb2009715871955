"""Streamed CKA equals the Gram form, however the examples are cut."""

from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distmoe.errors import DataError
from distmoe.seed import generator
from distmoe.structure import moments as moments_module
from distmoe.structure.cka import cka_matrix
from distmoe.structure.moments import PairMoments, ordered_sum


def related(num_sets: int, num_examples: int, width: int, key: int = 0) -> Tensor:
    """Feature sets with a common part, ``[T, N, D]`` float64."""
    stream = generator(key, "test")
    own = torch.randn(num_sets, num_examples, width, generator=stream, dtype=torch.float64)
    return own + torch.randn(1, num_examples, width, generator=stream, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_any_cut_into_batches_gives_the_gram_form(key: int, cuts: list[int]):
    features = related(3, 4 + sum(cuts), 5, key)
    reference = features[:, 0]
    batches = features.split([4, *cuts], dim=1)
    streamed = reduce(add, [PairMoments.of(batch, reference) for batch in batches])
    assert streamed.num_examples == features.shape[1]
    torch.testing.assert_close(streamed.cka(), cka_matrix(features), atol=1e-10, rtol=0)


def test_single_precision_features_are_summed_in_double():
    features = related(2, 200, 16).float()
    streamed = PairMoments.of(features, features.mean(dim=1))
    torch.testing.assert_close(streamed.cka(), cka_matrix(features.double()), atol=1e-12, rtol=0)
    torch.testing.assert_close(streamed.cka().diagonal(), torch.ones(2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_reference_makes_the_sums_safe_against_an_offset():
    features = related(2, 200, 16)
    expected = cka_matrix(features)
    far = features + 1000.0
    safe = PairMoments.of(far, far[:, :50].mean(dim=1)).cka()
    unsafe = PairMoments.of(far, torch.zeros(2, 16)).cka()
    torch.testing.assert_close(safe, expected, atol=1e-10, rtol=0)
    assert (unsafe - expected).abs().max() > 1e-8


def test_features_that_never_vary_are_similar_to_nothing():
    features = torch.stack([related(1, 20, 4)[0], torch.full((20, 4), 3.0, dtype=torch.float64)])
    cka = PairMoments.of(features, features.mean(dim=1)).cka()
    torch.testing.assert_close(cka, torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64))


def test_an_ordered_sum_is_the_sum_in_order_of_rank_piece_by_piece(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(moments_module, "_CHUNK", 7)
    features = related(2, 12, 3)
    parts = [PairMoments.of(part, features[:, 0]) for part in features.split([5, 0, 7], dim=1)]
    pieces: list[list[Tensor]] = [[], [], []]
    for rank, part in enumerate(parts):  # what each rank would send
        ordered_sum(part, lambda piece, rank=rank: pieces[rank].append(piece) or [piece])
    sent = iter(zip(*pieces, strict=True))
    total = ordered_sum(parts[1], lambda piece: next(sent))
    expected = parts[0] + parts[1] + parts[2]
    assert total.num_examples == 12
    assert torch.equal(total.products_TDTD, expected.products_TDTD)
    assert torch.equal(total.cka(), expected.cka())


def test_too_few_examples_are_refused():
    features = related(2, 3, 4)
    with pytest.raises(DataError, match=r"got: +3\n +expected: at least 4"):
        PairMoments.of(features, features[:, 0]).cka()
