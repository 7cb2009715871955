from unittest.mock import Mock

import pytest
import torch

from distmoe.errors import ConfigError
from distmoe.models.build import build_model
from distmoe.models.shape import resolve_shape
from distmoe.parallel.process_groups import LayerHosting, single_process
from distmoe.tasks import TaskGrouping
from tests.unit.models.samples import GATES, TASKS, make_model, model_config, moe_config


@pytest.mark.parametrize("gate", GATES)
def test_values_depend_on_the_seed_only(gate: str) -> None:
    config = model_config(moe_config(gate))

    def parameters(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(5)  # other users of the global stream must not matter
        return dict(make_model(config, seed=seed).named_parameters())

    first, again, other = parameters(1), parameters(1), parameters(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    fresh = [name for name in first if not torch.equal(first[name], other[name])]
    assert "encoder.embeddings.word.weight" in fresh
    assert "encoder.layers.1.feed_forward.pools.g0.w_in" in fresh
    assert "heads.weight" in fresh


def test_each_rank_of_a_block_builds_its_slice_of_the_experts_and_equal_dense_parameters() -> None:
    """Experts 0 1 | 2 3 of task group 0 and of task group 1 on two ranks."""
    config = model_config(moe_config("per_task", num_experts=8))
    shape = resolve_shape(config, 50, 0)
    grouping = TaskGrouping.uniform(3, 1, [[0, 2], [1]])
    whole = make_model(config, partition=[[0, 2], [1]]).state_dict()
    for rank in range(2):
        hosting = LayerHosting((0, 1), rank, 2, Mock())  # nothing is exchanged while building
        model = build_model(config, shape=shape, tasks=TASKS, grouping=grouping, hosting=(hosting,), seed=0)
        for name, value in model.state_dict().items():
            expected = whole[name][2 * rank : 2 * rank + 2] if ".pools." in name else whole[name]
            assert torch.equal(value, expected), name


def test_a_rank_that_hosts_one_task_group_holds_no_expert_of_another() -> None:
    config = model_config(moe_config("token"))
    grouping = TaskGrouping.uniform(3, 1, [[0, 2], [1]])
    model = build_model(
        config,
        shape=resolve_shape(config, 50, 0),
        tasks=TASKS,
        grouping=grouping,
        hosting=(LayerHosting((1,), 0, 1, None),),
        seed=0,
    )
    pools = {name.split(".")[5] for name, _ in model.named_parameters() if ".pools." in name}
    assert pools == {"g1"}
    whole = make_model(config, partition=[[0, 2], [1]]).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in model.state_dict().items())


def test_only_chosen_layers_are_routed_and_pre_norm_has_a_final_norm() -> None:
    names = make_model(model_config(moe_config(layers=[0]), norm="pre")).state_dict().keys()
    assert "encoder.layers.0.feed_forward.pools.g0.w_in" in names
    assert "encoder.layers.1.feed_forward.w_in" in names
    assert "encoder.final_norm.weight" in names
    assert "encoder.final_norm.weight" not in make_model(model_config(None)).state_dict()


def test_grouping_for_another_number_of_layers_is_refused() -> None:
    config = model_config(moe_config(layers="all"))
    grouping = TaskGrouping.one_group(3, 1)
    with pytest.raises(ConfigError, match=r"(?s)1 partition.*2, for the routed layers \[0, 1\]"):
        build_model(
            config,
            shape=resolve_shape(config, 50, 0),
            tasks=TASKS,
            grouping=grouping,
            hosting=single_process(grouping).hosting,
            seed=0,
        )


def test_no_module_on_the_way_to_a_gate_or_a_pool_is_called_expert() -> None:
    """DeepSpeed matches the substring in parameter names and would treat such parameters as expert-parallel."""
    for gate in GATES:
        names = [name for name, _ in make_model(model_config(moe_config(gate, shared_expert=True))).named_parameters()]
        assert [name for name in names if "expert" in name] == []


def test_experts_per_task_group_give_every_task_group_its_own_and_survive_a_merge():
    """Three task groups, then two at the deeper layer: 2 experts each, whatever ``num_experts`` says."""
    moe = moe_config("token", layers="all").model_copy(update={"experts_per_task_group": 2, "num_experts": 5})
    model = make_model(model_config(moe), partitions=[[[0, 1], [2]], [[0], [1], [2]]])
    shapes = [
        {name: tuple(pool.w_in.shape[:1]) for name, pool in layer.feed_forward.pools.items()}
        for layer in model.encoder.layers
    ]
    assert shapes == [{"g0": (2,), "g1": (2,)}, {"g0": (2,), "g1": (2,), "g2": (2,)}]
    assert [layer.feed_forward.gate.num_experts for layer in model.encoder.layers] == [4, 6]
