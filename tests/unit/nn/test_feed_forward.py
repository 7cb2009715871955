import pytest
import torch

from distmoe.errors import ConfigError
from distmoe.moe.experts import ExpertPool
from distmoe.nn.activations import ACTIVATIONS
from distmoe.nn.feed_forward import FeedForward


def test_equals_the_formula_worked_by_hand() -> None:
    """x = [1, 2]; inner = [1*1 + 2*1 - 1, 1*(-3)] = [2, -3]; relu = [2, 0]; out = [2*2 + 0.5, 2*1] = [4.5, 2]."""
    part = FeedForward(2, 2, "relu")
    with torch.no_grad():
        part.w_in.copy_(torch.tensor([[1.0, 1.0], [-3.0, 0.0]]))
        part.b_in.copy_(torch.tensor([-1.0, 0.0]))
        part.w_out.copy_(torch.tensor([[2.0, 7.0], [1.0, 7.0]]))
        part.b_out.copy_(torch.tensor([0.5, 0.0]))
    assert part(torch.tensor([1.0, 2.0])).tolist() == [4.5, 2.0]


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_those_of_transformers(name: str) -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[name](x), atol=1e-6, rtol=1e-6)


def test_unknown_activation_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"(?s)mish.*gelu.*hidden_act"):
        FeedForward(2, 2, "mish")


def test_a_gated_part_is_one_row_of_a_pool_and_equals_the_formula() -> None:
    """x = [1, 2]; gate rows [[1, 0], [0, -1]] give [1, -2]; up rows [[0, 1], [1, 1]] give [2, 3].

    silu(1) * 2 = 1.46212, silu(-2) * 3 = -0.71522; out = [first + second, 2 * first].
    """
    part = FeedForward(2, 2, "swiglu")
    assert {name: tuple(value.shape) for name, value in part.named_parameters()} == {"w_in": (4, 2), "w_out": (2, 2)}
    with torch.no_grad():
        part.w_in.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.0, 1.0], [1.0, 1.0]]))
        part.w_out.copy_(torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
    torch.testing.assert_close(part(torch.tensor([1.0, 2.0])), torch.tensor([0.74690, 2.92423]), atol=1e-5, rtol=0)
    pool = ExpertPool(num_experts=1, hidden_size=2, intermediate_size=2, activation="swiglu")
    with torch.no_grad():
        pool.w_in[0].copy_(part.w_in)
        pool.w_out[0].copy_(part.w_out)
    rows = torch.tensor([[1.0, 2.0], [-0.5, 0.3]])
    torch.testing.assert_close(pool(rows, torch.tensor([2])), part(rows), atol=1e-6, rtol=0)
