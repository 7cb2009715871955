"""The configuration of conditional modules and the plan made of it."""

from __future__ import annotations

from typing import Any

import pytest

from distmoe.config import build
from distmoe.errors import ConfigError
from distmoe.nn.conditional import ConditionalConfig, ConditionalPlan, conditional_plan
from distmoe.nn.conditional.plan import resolve_layers

OFF = {"enabled": False}


def config(**values: Any) -> ConditionalConfig:
    return build(ConditionalConfig, values)


def test_defaults_condition_the_upper_half_and_the_top() -> None:
    plan = conditional_plan(config(), 12)
    upper = (6, 7, 8, 9, 10, 11)
    assert plan == ConditionalPlan(alignment=True, attention=upper, layer_norm=upper, bottleneck=(11,))
    assert plan.first_layer == 0


@pytest.mark.parametrize(
    ("choice", "num_layers", "expected"),
    [
        ("upper", 12, (6, 7, 8, 9, 10, 11)),
        ("upper", 5, (2, 3, 4)),
        ("upper", 1, (0,)),
        ("top", 4, (3,)),
        ("all", 3, (0, 1, 2)),
        ([2, 0], 3, (0, 2)),
    ],
)
def test_layer_choices(choice: Any, num_layers: int, expected: tuple[int, ...]) -> None:
    assert resolve_layers(choice, num_layers, key="k") == expected


@pytest.mark.parametrize("layers", [[12], [-1], [3, 3], []])
def test_layers_that_do_not_exist_are_refused_with_their_key(layers: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)model\.conditional\.layer_norm\.layers.*from 0 to 11.*enabled=false"):
        conditional_plan(config(layer_norm={"layers": layers}), 12)


def test_conditioning_from_a_layer_leaves_alignment_and_lower_layers_out() -> None:
    plan = conditional_plan(config(attention={"layers": "all"}), 4, first_layer=3)
    assert plan == ConditionalPlan(alignment=False, attention=(3,), layer_norm=(3,), bottleneck=(3,))
    assert plan.first_layer == 3


def test_a_listed_layer_below_the_first_conditioned_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)attention\.layers.*\[1, 3\].*from 2 to 3"):
        conditional_plan(config(attention={"layers": [1, 3]}), 4, first_layer=2)


def test_nothing_left_above_the_first_conditioned_layer_is_refused() -> None:
    only_alignment = config(attention=OFF, layer_norm=OFF, bottleneck=OFF)
    assert conditional_plan(only_alignment, 4).first_layer == 0
    with pytest.raises(ConfigError, match=r"(?s)no conditional module is left.*from layer 2"):
        conditional_plan(only_alignment, 4, first_layer=2)


@pytest.mark.parametrize(("layout", "bottleneck", "chain"), [("base", (11,), False), ("large", (), True)])
def test_the_published_plan(layout: str, bottleneck: tuple[int, ...], chain: bool) -> None:
    plan = conditional_plan(config(mode="repo", repo_layout=layout), 12)
    assert plan == ConditionalPlan(
        alignment=True,
        attention=tuple(range(12)),
        layer_norm=tuple(range(6, 12)),
        bottleneck=bottleneck,
        chain=chain,
    )
    assert plan.first_layer == 0


def test_the_published_plan_cannot_start_above_the_embeddings() -> None:
    with pytest.raises(ConfigError, match=r"(?s)published structure.*layer 6.*mode=distmoe"):
        conditional_plan(config(mode="repo"), 12, first_layer=6)


def test_a_block_larger_than_the_bias_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)block_side 129, max_length 128.*block_side <= 128.*lower"):
        config(attention={"block_side": 129})
    assert config(attention={"block_side": 128}).attention.block_side == 128


def test_an_unknown_module_is_refused_with_the_closest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"(?s)unknown key 'bottlneck'.*did you mean bottleneck\?"):
        config(bottlneck={})


def test_all_modules_off_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)switched off.*model\.conditional=null"):
        config(attention=OFF, alignment=OFF, layer_norm=OFF, bottleneck=OFF)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"generator": "table"}, "generator"),
        ({"embedding_size": 32}, "embedding_size"),
        ({"layer_norm": OFF}, "layer_norm.enabled"),
        ({"attention": {"block_side": 8}}, "attention.block_side"),
    ],
)
def test_mode_repo_refuses_keys_that_it_would_not_read(values: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)published code.*{key}.*mode=distmoe"):
        config(mode="repo", **values)


def test_mode_repo_reads_layout_and_length_and_accepts_written_defaults() -> None:
    full = config(mode="repo", repo_layout="large", attention={"max_length": 64}).model_dump()
    assert build(ConditionalConfig, full).attention.max_length == 64
