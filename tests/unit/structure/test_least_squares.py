"""The merged layer is the least-squares answer on all members' inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distmoe.seed import generator
from distmoe.structure.feed_forward_tensors import FeedForwardTensors
from distmoe.structure.least_squares import Grams, input_gram, least_squares, merge_feed_forward_least_squares


def normal(*shape: int, key: object) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "test", key), dtype=torch.float64)


def test_it_solves_the_stacked_regression():
    inputs, weights = [normal(40, 6, key=("x", k)) for k in range(3)], [normal(4, 6, key=("w", k)) for k in range(3)]
    inputs[1][:, 0] *= 5.0
    merged = least_squares(weights, [input_gram(x, bias=False) for x in inputs], ridge=1e-14)
    targets = torch.cat([x @ w.T for x, w in zip(inputs, weights, strict=True)])
    expected = torch.linalg.lstsq(torch.cat(inputs), targets).solution.T
    torch.testing.assert_close(merged, expected, atol=1e-9, rtol=0)


def test_equal_inputs_give_exactly_the_plain_mean():
    """So distillation on common inputs cannot improve on averaging."""
    gram = input_gram(normal(50, 6, key="x"), bias=False)
    weights = [normal(4, 6, key=k) for k in range(3)]
    torch.testing.assert_close(least_squares(weights, [gram] * 3), sum(weights) / 3, atol=1e-12, rtol=0)


def test_members_with_disjoint_inputs_keep_their_own_functions():
    x = [
        torch.cat([normal(50, 3, key=0), torch.zeros(50, 3)], 1),
        torch.cat([torch.zeros(50, 3), normal(50, 3, key=1)], 1),
    ]
    weights = [normal(4, 6, key=("w", k)) for k in range(2)]
    merged = least_squares(weights, [input_gram(part, bias=False) for part in x], ridge=1e-12)
    for part, weight in zip(x, weights, strict=True):
        torch.testing.assert_close(part @ merged.T, part @ weight.T, atol=1e-8, rtol=0)


def test_directions_that_nobody_uses_get_the_plain_mean():
    x = normal(50, 6, key="x")
    x[:, 5] = 0.0
    weights = [normal(4, 6, key=("w", k)) for k in range(2)]
    grams = [input_gram(x, bias=False), input_gram(2 * x[:20], bias=False)]
    merged = least_squares(weights, grams)
    torch.testing.assert_close(merged[:, 5], (weights[0] + weights[1])[:, 5] / 2, atol=1e-12, rtol=0)


def test_gram_matrices_add_over_batches():
    x = normal(30, 5, key="x")
    parts = sum(input_gram(part, bias=True) for part in x.split([7, 0, 23]))
    torch.testing.assert_close(parts, input_gram(x, bias=True), atol=1e-12, rtol=0)


@pytest.mark.parametrize("gated", [False, True])
def test_a_feed_forward_part_is_closer_to_its_members_than_the_mean_where_inputs_differ(gated: bool):
    units, width = 16, 6
    inputs = [
        normal(200, width, key=("x", k)) * torch.linspace(0.1 + 2 * k, 2.1 - 2 * k, width).abs() for k in range(2)
    ]
    members = []
    for k in range(2):
        h = 2 * units if gated else units
        bias = (None, None) if gated else (normal(h, key=("bi", k)), normal(width, key=("bo", k)))
        members.append(
            FeedForwardTensors(normal(h, width, key=("i", k)), bias[0], normal(width, units, key=("o", k)), bias[1])
        )

    def hidden(tensors: FeedForwardTensors, x: Tensor) -> Tensor:
        before = F.linear(x, tensors.w_in_HD, tensors.b_in_H)
        return F.silu(before[:, :units]) * before[:, units:] if gated else F.gelu(before)

    def error(merged: FeedForwardTensors) -> float:
        return sum(
            (F.linear(x, merged.w_in_HD, merged.b_in_H) - F.linear(x, own.w_in_HD, own.b_in_H)).square().sum().item()
            for own, x in zip(members, inputs, strict=True)
        )

    grams = [
        Grams(input_gram(x, bias=not gated), input_gram(hidden(own, x), bias=not gated))
        for own, x in zip(members, inputs, strict=True)
    ]
    merged = merge_feed_forward_least_squares(members, grams)
    equal = merge_feed_forward_least_squares(members, [grams[0]] * 2)
    assert list(merged.by_name()) == list(members[0].by_name())
    assert all(value.shape == members[0].by_name()[key].shape for key, value in merged.by_name().items())
    torch.testing.assert_close(equal.w_out_DF, (members[0].w_out_DF + members[1].w_out_DF) / 2)
    assert error(merged) < 0.7 * error(equal)


def test_hidden_units_in_another_order_are_those_of_the_permuted_part():
    x_NF = normal(30, 4, key="hidden")
    order = torch.tensor([2, 0, 3, 1])
    whole = Grams(torch.zeros(1, 1), input_gram(x_NF, bias=True))
    torch.testing.assert_close(
        whole.permuted(order).hidden, input_gram(x_NF[:, order], bias=True), rtol=1e-12, atol=1e-12
    )
