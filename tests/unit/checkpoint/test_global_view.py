from __future__ import annotations

import torch
from torch import nn

from distmoe.checkpoint.global_view import GlobalView, expert_rows, global_views, replicated
from distmoe.moe.experts import ExpertPool


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
