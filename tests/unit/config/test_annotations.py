"""Annotations in the words of users."""

from __future__ import annotations

from typing import Literal

import pytest

from distmoe.config.annotations import accepts_none, alternatives, readable


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "integer"),
        (float | None, "number | null"),
        (bool, "true or false"),
        (Literal["odd", "even"] | list[int], "odd | even | list of integers"),
        (list[list[str]], "list of lists of texts"),
        (dict[str, list[int]] | None, "mapping of text to list of integers | null"),
        (dict[Literal["train", "test"], str], "mapping of train | test to text"),
        (list[Literal["a", "b"]], "list of a or b"),
        (dict[str, Literal["error"] | float], "mapping of text to error or number"),
    ],
)
def test_readable(annotation, words):
    assert readable(annotation) == words


def test_a_union_is_split_and_null_is_told_apart():
    assert alternatives(int | str | None) == (int, str)
    assert alternatives(list[int]) == (list[int],)
    assert accepts_none(int | None)
    assert not accepts_none(int | str)
