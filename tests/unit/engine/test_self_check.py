from __future__ import annotations

import pytest
import torch
from torch import nn

from distmoe.engine.self_check import check_cover, compare, describe, expert_numels
from distmoe.errors import ParallelError
from distmoe.parallel.process_groups import ReplicaClass


def test_equal_descriptions_pass() -> None:
    compare({"a": [1, 2]}, {"a": [1, 2]}, 1)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (
            [("x", 2), ("z", 3)],
            r"0 and 3 differ in their dense parameters \(entry 1\)(.|\n)*rank 3: \('z', 3\)(.|\n)*rank 0: \('y', 3\)",
        ),
        ([("x", 2)], r"entry 1(.|\n)*rank 3: nothing"),
        ([("x", 2), ("y", 3), ("w", 1)], r"entry 2(.|\n)*rank 3: \('w', 1\)(.|\n)*rank 0: nothing"),
    ],
)
def test_the_first_difference_is_named_with_both_ranks(theirs: list, message: str) -> None:
    with pytest.raises(ParallelError, match=message):
        compare({"dense parameters": [("x", 2), ("y", 3)]}, {"dense parameters": theirs}, 3)


def test_experts_are_left_out_of_the_dense_description_and_counted_apart() -> None:
    model = nn.Module()
    model.gate, model.pool = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3, 2))
    model.pool.allreduce = False
    param_groups = [
        {
            "name": "gate-decay",
            "moe": False,
            "weight_decay": 0.1,
            "lr": 1.0,
            "parameter_names": ("gate",),
            "params": [model.gate],
        },
        {
            "name": "ep_size_1",
            "moe": True,
            "weight_decay": 0.1,
            "lr": 1.0,
            "parameter_names": ("pool",),
            "params": [model.pool],
        },
    ]
    found = describe(model, param_groups, [ReplicaClass("ep_size_1", (0,), (0,), (0,), None, None, uniform=True)])
    assert found["dense parameters"] == [("gate", (2,), "torch.float32", True)]
    assert found["parameters of dense param groups"] == [("gate",)]
    assert expert_numels(param_groups) == [(6,)]


def test_ranks_must_agree_about_the_copies_of_their_experts() -> None:
    name, everyone = "ep_size_1", (0, 1)
    check_cover([[(name, (0,), everyone)], [(name, (1,), everyone)]])
    with pytest.raises(
        ParallelError, match=r"ranks 0 and 1 disagree about their copies(.|\n)*rank 1: \[1\](.|\n)*rank 0: \[0, 1\]"
    ):
        check_cover([[(name, (0,), everyone)], [(name, (1,), (1,))]])
    with pytest.raises(ParallelError, match="rank 1 is not among its own copies"):
        check_cover([[(name, (0,), (0,))], [(name, (1,), (0,))]])
