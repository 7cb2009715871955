"""Parameters of the published models, counted from modules without weights (specification of CA-MTL, section 4)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distmoe.errors import ConfigError
from distmoe.nn.conditional import TaskConditioner
from distmoe.nn.conditional.attention import ConditionalAttentionBias
from distmoe.nn.conditional.counts import ParameterShares, count_added, parameter_shares
from distmoe.nn.conditional.generator import GeneratorFactory
from distmoe.nn.conditional.published import PublishedBlock
from distmoe.nn.conditional.published_models import (
    BASE,
    HEADS,
    LARGE,
    PublishedSize,
    freeze_as_published,
    published_model,
)
from tests.unit.nn.conditional.samples import EVERYTHING, SmallEncoder

SIZES = {"base": BASE, "large": LARGE}


def numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("size", "backbone", "total", "added"),
    [("base", 108_310_272, 128_065_570, 19_755_298), ("large", 333_579_264, 480_337_674, 146_758_410)],
)
def test_totals_are_the_published_ones(size: str, backbone: int, total: int, added: int) -> None:
    model = published_model(SIZES[size])
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert numel(published_model(SIZES[size], conditional=False)) == backbone
    assert numel(model) == total
    assert numel(model) - backbone == added
    shares = parameter_shares(model, heads=HEADS)
    assert (shares.backbone, shares.added, shares.total) == (backbone, added, total)


@pytest.mark.parametrize(
    ("size", "parts", "heads"),
    [
        (
            "base",
            {
                "layer_norm": 15_355_392,
                "bottleneck": 2_166_016,
                "bottleneck_norm": 1_536,
                "alignment": 1_181_184,
                "projection": 590_592,
                "attention_generators": 406_032,
                "attention_blocks": 33_792,
                "task_table": 6_912,
            },
            13_842,
        ),
        (
            "large",
            {
                "bottleneck": 92_364_792,
                "layer_norm": 50_380_800,
                "alignment": 2_099_200,
                "projection": 1_049_600,
                "attention_generators": 787_200,
                "attention_blocks": 49_152,
                "task_table": 9_216,
            },
            18_450,
        ),
    ],
)
def test_every_part_is_the_published_one(size: str, parts: dict[str, int], heads: int) -> None:
    model = published_model(SIZES[size])
    assert count_added(model) == parts
    assert numel(model["heads"]) == heads


@pytest.mark.parametrize(
    ("size", "generator", "blocks", "film", "bottleneck"),
    [("base", 33_836, 2_816, 1_181_184, 2_166_016), ("large", 32_800, 2_048, 2_099_200, 3_848_533)],
)
def test_every_unit_is_the_published_one(size: str, generator: int, blocks: int, film: int, bottleneck: int) -> None:
    model = published_model(SIZES[size])
    top = model["layers"][-1]
    for layer in model["layers"]:
        assert numel(layer["attention_bias"].generator) == generator
        assert layer["attention_bias"].blocks_Ls.numel() == blocks
    assert numel(model["alignment"]) == numel(top["attention_norm"].generator) == film
    assert {numel(module) for module in model.modules() if isinstance(module, PublishedBlock)} == {bottleneck}


@pytest.mark.parametrize(
    ("size", "layers", "frozen", "of_total", "of_backbone", "trainable", "per_task"),
    [
        ("base", 5, 58_273_756, 45.5, 53.7, 0.644, 7.2),
        ("base", 6, 65_395_464, 51.1, 60.2, 0.579, 6.4),
        ("base", 7, 72_517_172, 56.6, 66.7, 0.513, 5.7),
        ("large", 12, 181_768_576, 37.8, 54.4, 0.895, 9.9),
        ("large", 13, 194_397_600, 40.5, 58.2, 0.857, 9.5),
    ],
)
def test_the_freeze_table_is_the_published_one_with_its_defect(
    size: str, layers: int, frozen: int, of_total: float, of_backbone: float, trainable: float, per_task: float
) -> None:
    model = published_model(SIZES[size])
    freeze_as_published(model, layers)
    shares = parameter_shares(model, heads=HEADS)
    assert shares.frozen == frozen
    assert shares.frozen_added == layers * numel(model["layers"][0]["attention_bias"].generator)
    assert round(100 * shares.frozen_of_total, 1) == of_total
    # 53.646 and 58.148 stand as 53.7 and 58.2 in the table, rounded twice.
    assert 100 * shares.frozen_of_backbone == pytest.approx(of_backbone, abs=0.06)
    assert round(shares.trainable_to_backbone, 3) == trainable
    assert round(100 * shares.trainable_to_backbone / len(SIZES[size].head_outputs), 1) == per_task


@pytest.mark.parametrize("size", ["base", "large"])
def test_conditional_layer_norms_stand_where_they_were_published(size: str) -> None:
    """Both norms of the upper half; base has one more in its adapter."""
    layers = published_model(SIZES[size])["layers"]
    conditional = [
        hasattr(layer[norm], "generator") for layer in layers for norm in ("attention_norm", "feed_forward_norm")
    ]
    half = SIZES[size].num_layers
    assert conditional == [False] * half + [True] * half
    assert ["bottleneck" in layer for layer in layers] == [False] * (len(layers) - 1) + [size == "base"]


@pytest.mark.parametrize(("size", "share"), [("base", 16.7), ("large", 12.5)])
def test_the_published_blocks_cover_the_published_share_of_positions(size: str, share: float) -> None:
    """Base: five blocks of 22 and one of 18 on 128 positions, 2,744 of 16,384 pairs; large: eight of 16."""
    side = published_model(SIZES[size])["layers"][0]["attention_bias"].blocks_Ls.shape[1]
    bias = ConditionalAttentionBias(
        max_length=128, block_side=side, form="vector", generators=GeneratorFactory("table", 1, 1)
    )
    torch.nn.init.ones_(bias.blocks_Ls)
    torch.nn.init.zeros_(bias.generator.table_Tm)
    conditioning = TaskConditioner(1, None)(torch.tensor([0]))
    M_SS = bias(conditioning, torch.ones(1, 1, 1, 128, dtype=torch.bool), dtype=torch.float32)[0, 0]
    assert round(100 * M_SS.count_nonzero().item() / 128**2, 1) == share


@pytest.mark.parametrize(("width", "side", "millions"), [(768, 22, 0.74), (1024, 16, 0.52)])
def test_the_full_form_costs_what_the_specification_says(width: int, side: int, millions: float) -> None:
    with torch.device("meta"):
        bias = ConditionalAttentionBias(
            max_length=128, block_side=side, form="full", generators=GeneratorFactory("linear", 9, width)
        )
    assert numel(bias.generator) == 2 * side**2 * (width + 1)
    assert round(numel(bias.generator) / 1e6, 2) == millions


def test_shares_by_hand() -> None:
    """100 backbone parameters of which 60 are frozen, 20 added, none frozen."""
    shares = ParameterShares(backbone=100, added=20, frozen_backbone=60, frozen_added=0)
    assert (shares.total, shares.frozen) == (120, 60)
    assert (shares.frozen_of_total, shares.frozen_of_backbone, shares.trainable_to_backbone) == (0.5, 0.6, 0.6)


def test_added_parameters_of_the_own_mode_by_hand() -> None:
    """Two layers, D = 12, k = 6, four tasks, A 6 x 3, vector form, r = 4."""
    assert count_added(SmallEncoder(EVERYTHING)) == {
        "task_table": 4 * 6,
        "projection": 0,
        "alignment": 2 * 12 * 7,
        "attention_generators": 2 * (2 * 3 * 7),
        "attention_blocks": 2 * 6 * 3,
        "layer_norm": 2 * 2 * (2 * 12 * 7),
        "bottleneck": 2 * (2 * 12 * 7 + 2 * 4 * 12),
    }
    assert count_added(SmallEncoder()) == {}


def test_a_length_that_does_not_divide_the_published_width_is_refused() -> None:
    odd = PublishedSize(layout="base", hidden_size=768, num_layers=2, num_heads=12, intermediate_size=8, max_length=100)
    with pytest.raises(ConfigError, match=r"(?s)model width 768, length 100.*divisor of 768.*mode=distmoe"):
        published_model(odd)
