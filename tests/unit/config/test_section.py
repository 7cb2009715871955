"""Errors and documentation of strict configuration sections."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from distmoe.config import Section, build, describe
from distmoe.errors import ConfigError


class Leaf(Section):
    layers: Literal["odd", "all"] | list[int] = Field("odd", description="Which layers.")
    table: dict[str, list[int]] | None = Field(None, description="A table.")
    shares: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default_factory=list, description="Shares.")
    rate: float = Field(0.5, gt=0, le=1, description="A rate.")
    every: int | None = Field(10, gt=0, description="How often.")


class Entry(Section):
    path: str = Field(description="Where.")
    kind: Literal["a", "b"] = Field("a", description="Which.")


class Root(Section):
    leaf: Leaf = Field(default_factory=Leaf)
    maybe: Leaf | None = Field(None, description="null: none.")
    entries: dict[str, Entry] = Field(default_factory=dict, description="By name.")


def failure(values: dict) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        build(Root, values)
    return caught.value


def test_defaults_and_given_values_are_kept():
    built = build(Root, {"leaf": {"layers": [1, 3]}, "entries": {"x": {"path": "p"}}})
    assert (built.leaf.layers, built.leaf.rate, built.maybe, built.entries["x"].kind) == ([1, 3], 0.5, None, "a")


@pytest.mark.parametrize(
    ("values", "key", "got", "expected"),
    [
        ({"leaf": {"layers": "even"}}, "leaf.layers", "'even' (str)", "odd | all | list of integers"),
        ({"leaf": {"layers": [1, "x"]}}, "leaf.layers", "[1, 'x'] (list)", "odd | all | list of integers"),
        (
            {"leaf": {"table": {"t": ["x"]}}},
            "leaf.table",
            "{'t': ['x']} (dict)",
            "mapping of text to list of integers | null",
        ),
        ({"leaf": {"rate": 2.0}}, "leaf.rate", "2.0 (float)", "number > 0, <= 1"),
        ({"leaf": {"rate": float("inf")}}, "leaf.rate", "inf (float)", "number > 0, <= 1, finite"),
        ({"leaf": {"rate": float("nan")}}, "leaf.rate", "nan (float)", "number > 0, <= 1, finite"),
        ({"leaf": {"shares": [0.5, 1.0]}}, "leaf.shares", "[0.5, 1.0] (list)", "list of numbers >= 0, < 1"),
        ({"leaf": {"rate": "0.5"}}, "leaf.rate", "'0.5' (str)", "number > 0, <= 1"),
        ({"leaf": {"every": 0}}, "leaf.every", "0 (int)", "integer > 0 | null"),
        ({"leaf": {"every": 2.5}}, "leaf.every", "2.5 (float)", "integer > 0 | null"),
        ({"maybe": 3}, "maybe", "3 (int)", "section with its own keys | null"),
        ({"maybe": {"layers": "even"}}, "maybe.layers", "'even' (str)", "odd | all | list of integers"),
        ({"entries": {"x": {"path": "p", "kind": "c"}}}, "entries.x.kind", "'c' (str)", "a | b"),
    ],
)
def test_a_wrong_value_names_its_own_key_and_all_that_the_key_accepts(values, key, got, expected):
    error = failure(values)
    assert error.what == f"key {key!r} has a value that does not fit"
    assert (error.got, error.expected) == (got, expected)
    assert error.remedy == f"change {key} in the recipe or on the command line"


def test_a_missing_key_is_named():
    error = failure({"entries": {"x": {}}})
    assert (error.what, error.expected) == ("key 'entries.x.path' is required", "text")


@pytest.mark.parametrize(
    ("values", "key", "remedy"),
    [
        ({"leaf": {"layer": 1}}, "leaf.layer", "did you mean leaf.layers?"),
        ({"maybe": {"tablet": 1}}, "maybe.tablet", "did you mean maybe.table?"),
        ({"entries": {"x": {"path": "p", "knd": 1}}}, "entries.x.knd", "did you mean entries.x.kind?"),
        ({"zzz": 1}, "zzz", "see docs/configuration.md for every key"),
    ],
)
def test_an_unknown_key_is_refused_with_the_closest_known_one(values, key, remedy):
    error = failure(values)
    assert (error.what, error.remedy) == (f"unknown key {key!r}", remedy)


def test_further_wrong_keys_are_counted_once_each():
    error = failure({"leaf": {"layers": "even", "rate": 2.0, "every": 0}})
    assert error.what.endswith("(2 more keys to correct after this one)")


def test_an_error_raised_by_a_section_itself_passes_unchanged():
    own = ConfigError("w", got=1, expected=2, remedy="r")

    class Picky(Section):
        def model_post_init(self, _context: object) -> None:
            raise own

    with pytest.raises(ConfigError) as caught:
        build(Picky, {})
    assert caught.value is own


def test_describe_lists_every_key_with_bounds_and_yaml_defaults():
    rows = {row[0]: row[1:] for row in describe(Root)}
    assert rows["leaf.layers"] == ("odd | all | list of integers", '"odd"', "Which layers.")
    assert rows["leaf.every"] == ("integer > 0 | null", "10", "How often.")
    assert rows["maybe"] == ("section with its own keys | null", "null", "null: none.")
    assert rows["maybe.rate"][0] == "number > 0, <= 1"
    assert rows["entries.<name>.path"] == ("text", "required", "Where.")
    assert "leaf" not in rows
