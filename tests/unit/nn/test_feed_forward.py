import pytest
import torch

from distmoe.errors import ConfigError
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
