"""``section.key=value`` on the command line."""

from __future__ import annotations

import re

import pytest

from distmoe.config import apply_overrides
from distmoe.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16", 16),
        ("1e-4", 1e-4),
        ("0.5", 0.5),
        ("null", None),
        ("true", True),
        ("odd", "odd"),
        ("[1, 3]", [1, 3]),
        ("[1e-1, 2]", [0.1, 2]),
        ("../shared/data", "../shared/data"),
        ("a=b", "a=b"),
        ("", None),
    ],
)
def test_a_value_is_read_as_yaml_and_short_exponents_as_numbers(text, value):
    merged = apply_overrides({}, [f"a.b={text}"])["a"]["b"]
    assert merged == value
    assert type(merged) is type(value)


@pytest.mark.parametrize("text", ["[a, b", "a: b: c", "@x"])
def test_a_value_that_is_no_yaml_is_refused(text):
    with pytest.raises(ConfigError, match=rf"cannot be read\n +got: +a\.b={re.escape(text)}\n[\s\S]*quote"):
        apply_overrides({}, [f"a.b={text}"])


def test_later_overrides_win_and_the_given_values_stay_as_they_were():
    values = {"model": {"moe": {"num_experts": 8}, "num_layers": 4}}
    merged = apply_overrides(values, ["model.moe.num_experts=2", "model.moe.num_experts=16"])
    assert merged == {"model": {"moe": {"num_experts": 16}, "num_layers": 4}}
    assert values["model"]["moe"]["num_experts"] == 8


def test_a_key_below_null_opens_the_section():
    assert apply_overrides({"model": {"moe": None}}, ["model.moe.top_k=2"]) == {"model": {"moe": {"top_k": 2}}}


@pytest.mark.parametrize("override", ["lr=1", "optimizer.lr", "=3"])
def test_an_override_without_section_or_value_is_refused(override):
    with pytest.raises(ConfigError, match=r"must name a section and a key[\s\S]*section\.key=value"):
        apply_overrides({}, [override])


def test_a_key_below_a_plain_value_is_refused():
    with pytest.raises(ConfigError, match=r"'optimizer.lr' is a value, not a section"):
        apply_overrides({"optimizer": {"lr": 1.0}}, ["optimizer.lr.x=1"])
