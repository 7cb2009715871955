"""A fresh layer learns to reproduce two others: on one process, without touching anything else."""

from __future__ import annotations

from typing import Any

import torch

from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.shape import resolve_shape
from distmoe.structure.config import AmalgamationConfig
from distmoe.structure.plan import Merge
from distmoe.tasks import TaskGrouping
from distmoe.training.structural.amalgamation import Amalgamation
from distmoe.training.structural.probe import ProbeSet
from tests.unit.data.toy import encoded
from tests.unit.models.samples import make_model, model_config, moe_config

CONFIG = model_config(moe_config("task", layers=[1], unit="block", experts_per_task_group=1))
GROUPING, MERGES = TaskGrouping.one_per_task(3, 1), (Merge(0, ((0,), (2,))),)


def model_with_noise(noise: float) -> MultiTaskEncoder:
    model = make_model(CONFIG, partition=[[0], [1], [2]], shape=resolve_shape(CONFIG, 4100, 0), alike=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.encoder.layers[1].variants.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return model


def amalgamation(model: MultiTaskEncoder, **options: Any) -> Amalgamation:
    return Amalgamation(
        model=model,
        config=CONFIG,
        options=AmalgamationConfig(**{"steps": 40, "lr": 1e-2, "batch_size": 16} | options),
        probe=ProbeSet(encoded((40, 30, 20)), num_examples=60, seed=0),
        model_layers=(1,),
        seed=0,
        device=torch.device("cpu"),
    )


def test_a_new_layer_comes_near_to_the_layers_that_it_replaces() -> None:
    for gates in ("none", "dropped"):
        (created,) = amalgamation(model_with_noise(0.3), gates=gates).create(GROUPING, MERGES, version=0)
        assert created.steps == 40
        assert created.losses[1] < 0.6 * created.losses[0]


def test_layers_that_are_the_template_need_no_learning() -> None:
    model = model_with_noise(0.0)
    (created,) = amalgamation(model, gates="none", weight_decay=0.0).create(GROUPING, MERGES, version=0)
    assert created.losses == (0.0, 0.0)
    own = model.encoder.layers[1].variants["g0"].state_dict()
    assert all(torch.equal(value, own[name]) for name, value in created.tensors.items())


def test_it_is_repeatable_and_touches_neither_the_model_nor_the_random_numbers() -> None:
    model = model_with_noise(0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (amalgamation(model, steps=3).create(GROUPING, MERGES, version=0)[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())
    assert first.losses == second.losses
    assert all(parameter.grad is None for parameter in model.parameters())


def test_parts_of_a_mini_batch_make_up_the_whole() -> None:
    probe = ProbeSet(encoded((40, 30, 20)), num_examples=60, seed=0)
    whole, num_tokens = probe.draw((0, 2), 1, 16, key="x", part=(0, 1))
    parts = [probe.draw((0, 2), 1, 16, key="x", part=(rank, 2)) for rank in range(2)]
    assert set(whole.task_ids_B.tolist()) == {0, 2}
    assert [tokens for _, tokens in parts] == [num_tokens] * 2
    assert sum(len(part.token_index_T) for part, _ in parts) == len(whole.token_index_T) == num_tokens
    lone, _ = probe.draw((0, 2), 0, 1, key="x", part=(1, 2))
    assert len(lone.token_index_T) == 0
