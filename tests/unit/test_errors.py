"""The one family of user-facing errors."""

from __future__ import annotations

import pytest

from distmoe import errors
from distmoe.errors import DistmoeError


def test_a_message_shows_its_four_parts_in_order():
    error = DistmoeError("it is wrong", got=3, expected="4", remedy="add one")
    assert str(error) == "it is wrong\n  got:      3\n  expected: 4\n  remedy:   add one"


@pytest.mark.parametrize("name", ["ConfigError", "DataError", "ParallelError", "CheckpointError", "TrainingError"])
def test_every_kind_is_caught_as_the_base(name):
    with pytest.raises(DistmoeError, match="w"):
        raise getattr(errors, name)("w", got=1, expected=2, remedy="r")
