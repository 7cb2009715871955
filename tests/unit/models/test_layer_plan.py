import pytest

from distmoe.errors import ConfigError
from distmoe.models.layer_plan import routed_layers
from distmoe.moe.config import MoEConfig


@pytest.mark.parametrize(
    ("layers", "num_layers", "expected"),
    [
        ("odd", 6, (1, 3, 5)),
        ("even", 5, (0, 2, 4)),
        ("all", 3, (0, 1, 2)),
        ([4, 1], 6, (1, 4)),
        ("even", 1, (0,)),
    ],
)
def test_layers_of_each_choice(layers: str | list[int], num_layers: int, expected: tuple[int, ...]) -> None:
    assert routed_layers(MoEConfig(layers=layers), num_layers) == expected


def test_a_dense_model_has_no_routed_layer() -> None:
    assert routed_layers(None, 6) == ()


@pytest.mark.parametrize("layers", [[6], [-1], [1, 1]])
def test_layers_outside_the_model_or_twice_are_refused(layers: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)does not have.*from 0 to 5.*model.moe.layers"):
        routed_layers(MoEConfig(layers=layers), 6)


@pytest.mark.parametrize(("layers", "num_layers"), [("odd", 1), ([], 4)])
def test_a_choice_that_leaves_no_layer_is_refused(layers: str | list[int], num_layers: int) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no layer.*model.moe=null"):
        routed_layers(MoEConfig(layers=layers), num_layers)
