from __future__ import annotations

from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distmoe.checkpoint.global_view import GlobalView, expert_rows, global_views, replicated, tensor_slice
from distmoe.moe.experts import ExpertPool
from distmoe.parallel.rank_grid import RankGrid


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 2)
        self.pools = nn.ModuleDict(
            {
                "g1": ExpertPool(num_experts=6, ep_rank=1, ep_size=3, hidden_size=4, intermediate_size=5),
            }
        )
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("mask", torch.ones(7), persistent=False)


def test_experts_are_rows_of_the_task_groups_tensor_and_the_rest_is_whole() -> None:
    views = global_views(Model())
    assert views["dense.weight"] == GlobalView("dense.weight", (2, 3), (2, 3), (0, 0))
    assert views["pools.g1.w_in"] == GlobalView("pools.g1.w_in", (2, 5, 4), (6, 5, 4), (2, 0, 0))
    assert views["pools.g1.b_out"] == GlobalView("pools.g1.b_out", (2, 4), (6, 4), (2, 0))


def test_persistent_buffers_have_views_and_others_have_none() -> None:
    views = global_views(Model())
    assert views["scale"] == replicated("scale", (2,))
    assert "mask" not in views


def test_shapes_given_from_outside_replace_those_of_emptied_parameters() -> None:
    model = Model()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    model.pools["g1"].w_in.data = torch.empty(0)
    assert global_views(model, shapes)["pools.g1.w_in"] == expert_rows(
        "pools.g1.w_in", (2, 5, 4), num_experts=6, first_expert=2
    )


def test_a_slice_of_two_sections_has_a_run_of_each() -> None:
    """Gate rows 0-3 and up rows 4-7 over two tensor ranks: the second holds rows 2 3 and 6 7."""
    view = tensor_slice("w_in", (4, 3), dim=0, sections=2, size=8, grid=RankGrid(rank=3, num_ranks=4, tensor=2))
    assert view == GlobalView("w_in", (4, 3), (8, 3), (2, 0), sections=2)
    assert view.take(torch.arange(24).view(8, 3))[:, 0].tolist() == [6, 9, 18, 21]
    assert [(offset, part.size) for offset, part in view.chunks(4, 10)] == [
        ((3, 1), (1, 2)),  # the end of row 3 of the global tensor, which is row 1 of this rank's
        ((6, 0), (1, 3)),
        ((7, 0), (1, 1)),
    ]


def test_a_slice_of_columns_lies_beside_those_of_lower_ranks() -> None:
    view = tensor_slice("out", (2, 3), dim=1, sections=1, size=6, grid=RankGrid(rank=1, num_ranks=2, tensor=2))
    assert view == GlobalView("out", (2, 3), (2, 6), (0, 3))


def test_the_last_slice_of_a_vocabulary_may_have_fewer_rows() -> None:
    """7 rows over 3 tensor ranks: 3, 3 and 1."""
    view = tensor_slice("word", (1, 2), dim=0, sections=1, size=7, grid=RankGrid(rank=2, num_ranks=3, tensor=3))
    assert view == GlobalView("word", (1, 2), (7, 2), (6, 0))


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.lists(st.integers(1, 3), max_size=2), st.data())
def test_chunks_of_a_slice_are_its_elements_at_their_places_in_the_global_tensor(
    tensor: int, sections: int, rows: int, rest: list[int], data: st.DataObject
) -> None:
    shape = (sections * rows, *rest)
    grid = RankGrid(rank=data.draw(st.integers(0, tensor - 1)), num_ranks=tensor, tensor=tensor)
    lo = data.draw(st.integers(0, prod(shape)))
    hi = data.draw(st.integers(lo, prod(shape)))
    view = tensor_slice("w", shape, dim=0, sections=sections, size=tensor * shape[0], grid=grid)
    whole = torch.arange(prod(view.global_shape)).view(view.global_shape)
    own = view.take(whole).flatten()
    seen: list[int] = []
    for offset, part in view.chunks(lo, hi):
        box = whole[tuple(slice(a, a + b) for a, b in zip(offset, part.size, strict=True))]
        assert box.flatten().tolist() == own[part.start : part.stop].tolist()
        seen += range(part.start, part.stop)
    assert seen == list(range(lo, hi))
