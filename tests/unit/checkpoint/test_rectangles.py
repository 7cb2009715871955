from __future__ import annotations

from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st

from distmoe.checkpoint.rectangles import Rectangle, rectangles


def test_the_drawn_example_has_head_body_and_tail() -> None:
    assert rectangles((3, 4), 2, 9) == [
        Rectangle((0, 2), (1, 2), 2, 4),
        Rectangle((1, 0), (1, 4), 4, 8),
        Rectangle((2, 0), (1, 1), 8, 9),
    ]


def test_a_range_inside_one_row_is_one_rectangle() -> None:
    assert rectangles((3, 4), 5, 7) == [Rectangle((1, 1), (1, 2), 5, 7)]


def test_a_range_that_ends_at_the_end_of_its_row_is_one_rectangle() -> None:
    assert rectangles((3, 4), 5, 8) == [Rectangle((1, 1), (1, 3), 5, 8)]


def test_whole_tensors_and_scalars_are_one_rectangle_and_nothing_is_none() -> None:
    assert rectangles((2, 3, 4), 0, 24) == [Rectangle((0, 0, 0), (2, 3, 4), 0, 24)]
    assert rectangles((), 0, 1) == [Rectangle((), (), 0, 1)]
    assert rectangles((5,), 1, 4) == [Rectangle((1,), (3,), 1, 4)]
    assert rectangles((3, 4), 6, 6) == []


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_rectangles_cover_the_range_once_in_order_with_at_most_2n_minus_1_parts(
    shape: list[int], data: st.DataObject
) -> None:
    lo = data.draw(st.integers(0, prod(shape)))
    hi = data.draw(st.integers(lo, prod(shape)))
    whole = torch.arange(prod(shape)).view(shape)
    parts = rectangles(shape, lo, hi)
    assert len(parts) <= 2 * len(shape) - 1
    seen: list[int] = []
    for part in parts:
        view = whole
        for dim, (start, length) in enumerate(zip(part.offset, part.size, strict=True)):
            view = view.narrow(dim, start, length)
        assert view.flatten().tolist() == list(range(part.start, part.stop))
        seen += view.flatten().tolist()
    assert seen == list(range(lo, hi))
