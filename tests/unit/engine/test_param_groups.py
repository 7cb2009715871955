from __future__ import annotations

import pytest
import torch
from torch import nn

from distmoe.engine.config import OptimizerConfig
from distmoe.engine.optimizer import build_optimizer, set_learning_rate
from distmoe.engine.param_groups import build_param_groups, tag_pools
from distmoe.models.parameters import Role
from distmoe.parallel.process_groups import ReplicaClass


def replica_class(name: str, *layers: int) -> ReplicaClass:
    return ReplicaClass(name, layers, (0,), (0,), None, None, uniform=True)


# "ep_size_1_1-1" sorts after "ep_size_1", whatever order the layers come in.
CLASSES = (replica_class("ep_size_1", 1), replica_class("ep_size_1_1-1", 0))
ROLES = {
    "dense.weight": Role("dense", True, None),
    "dense.bias": Role("dense", False, None),
    "gate": Role("gate", True, 0),
    "head": Role("head", True, None),
    "shallow": Role("pool", True, 0),
    "deep": Role("pool", True, 1),
    "deep_bias": Role("pool", False, 1),
}
CONFIG = OptimizerConfig(lr=0.1, weight_decay=0.2, gate_lr_scale=10.0, head_lr_scale=2.0)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(2, 3)
        for name in ("gate", "head", "shallow", "deep", "deep_bias"):
            self.register_parameter(name, nn.Parameter(torch.ones(2)))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


def test_dense_param_groups_come_first_then_replica_classes_by_name() -> None:
    found = build_param_groups(Model(), roles=ROLES, replica_classes=CLASSES, optimizer=CONFIG)
    assert [(p["name"], p["moe"], p["parameter_names"]) for p in found] == [
        ("dense-decay", False, ("dense.weight",)),
        ("dense-no-decay", False, ("dense.bias",)),
        ("gate-decay", False, ("gate",)),
        ("head-decay", False, ("head",)),
        ("ep_size_1", True, ("deep",)),
        ("ep_size_1", True, ("deep_bias",)),
        ("ep_size_1_1-1", True, ("shallow",)),
    ]
    assert [p["lr"] for p in found] == [0.1, 0.1, 1.0, 0.2, 0.1, 0.1, 0.1]


def test_trap_12_weight_decay_is_written_for_every_param_group() -> None:
    param_groups = build_param_groups(Model(), roles=ROLES, replica_classes=CLASSES, optimizer=CONFIG)
    optimizer = build_optimizer(param_groups, config=CONFIG)
    assert [p["weight_decay"] for p in optimizer.param_groups] == [0.2, 0.0, 0.2, 0.2, 0.2, 0.0, 0.2]


def test_every_learning_rate_is_base_times_scale_times_factor() -> None:
    param_groups = build_param_groups(Model(), roles=ROLES, replica_classes=CLASSES, optimizer=CONFIG)
    set_learning_rate(param_groups, lr=CONFIG.lr, factor=0.5)
    assert [p["lr"] for p in param_groups] == [0.05, 0.05, 0.5, 0.1, 0.05, 0.05, 0.05]


@pytest.mark.parametrize(
    "roles",
    [{name: role for name, role in ROLES.items() if name != "head"}, ROLES | {"frozen": Role("dense", True, None)}],
)
def test_a_parameter_without_a_place_or_a_place_without_a_parameter_is_a_mistake(roles: dict[str, Role]) -> None:
    with pytest.raises(AssertionError, match="roles and trainable parameters differ"):
        build_param_groups(Model(), roles=roles, replica_classes=CLASSES, optimizer=CONFIG)


def test_only_pools_are_tagged_with_their_replica_class() -> None:
    model = Model()
    tag_pools(model, roles=ROLES, replica_classes=CLASSES)
    assert (model.deep.allreduce, model.deep.group_name, model.shallow.group_name) == (
        False,
        "ep_size_1",
        "ep_size_1_1-1",
    )
    assert model.deep.ds_zero_placement_family == "autoep_expert"
    assert model.deep.ds_zero_partition_group_name == "ep_size_1"
    assert not hasattr(model.gate, "allreduce")
    assert not hasattr(model.dense.weight, "group_name")


def test_the_optimizer_is_textbook_adamw() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = build_optimizer(
        [{"params": [weight], "lr": 0.1, "weight_decay": 0.2}], config=OptimizerConfig(lr=0.1, betas=[0.9, 0.99])
    )
    expected, m, v = weight.detach().clone().double(), 0.0, 0.0
    for step in (1, 2, 3):
        gradient = torch.tensor([0.3, -0.1]).double() * step
        weight.grad = gradient.float()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        expected = expected * (1 - 0.1 * 0.2)
        expected = expected - 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected.float())
