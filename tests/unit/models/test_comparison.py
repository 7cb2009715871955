"""Features of several task groups on the same sequences, against one forward pass per task."""

from __future__ import annotations

from dataclasses import replace

import torch

from distmoe.models.comparison import Comparison, compared_features
from distmoe.structure.features import token_means
from tests.unit.models.samples import make_batch, make_model, model_config, moe_config


def test_features_equal_those_of_one_pass_per_task() -> None:
    """Three layers; the last two are routed, the first of them shared by all three tasks."""
    moe = moe_config("token", layers=[1, 2]).model_copy(update={"experts_per_task_group": 2})
    model = make_model(model_config(moe, num_layers=3), partitions=[[[0, 1, 2]], [[0, 2], [1]]])
    batch = make_batch(lengths=(7, 3, 5, 1))
    found = compared_features(model.encoder, Comparison(batch, layer=2, tasks=(0, 1)))
    kept: list[torch.Tensor] = []
    model.encoder.layers[2].register_forward_hook(lambda module, inputs, output: kept.append(output[0]))
    for task in (0, 1):
        model(replace(batch, task_ids_B=torch.full((4,), task)))
    expected = torch.stack([token_means(states, batch.attention_mask_BS) for states in kept])
    assert found.shape == (2, 4, 16)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found[0], found[1])


def test_layers_above_are_run_as_the_guide_whatever_is_compared() -> None:
    """Task 1 alone, with task 0 as guide: the second of both together. A task's gate meets other experts above."""
    moe = moe_config("task", layers=[1, 2]).model_copy(update={"experts_per_task_group": 2})
    model = make_model(model_config(moe, num_layers=3), partitions=[[[0, 1, 2]], [[0, 2], [1]]])
    gate = model.encoder.layers[1].feed_forward.gate
    with torch.no_grad():
        next(gate.parameters()).copy_(torch.eye(3, 2) * 9 + torch.eye(3, 2).flip(0))  # tasks 0 and 1 differ
    batch = make_batch(lengths=(7, 3))
    both = compared_features(model.encoder, Comparison(batch, layer=2, tasks=(0, 1)))
    alone = compared_features(model.encoder, Comparison(batch, layer=2, tasks=(1,), guide=0))
    torch.testing.assert_close(alone[0], both[1])
    assert not torch.allclose(compared_features(model.encoder, Comparison(batch, layer=2, tasks=(1,)))[0], both[1])


def test_a_task_serves_sequences_of_any_task_as_its_own() -> None:
    moe = moe_config("token", layers="all").model_copy(update={"experts_per_task_group": 2})
    model = make_model(model_config(moe), partition=[[0], [1], [2]])
    batch = make_batch(lengths=(7, 3, 5, 1))
    served = model.served_by(batch, 1)
    own = replace(batch, task_ids_B=torch.full((4,), 1))
    kept: list[torch.Tensor] = []
    model.pooler.register_forward_hook(lambda module, inputs, output: kept.append(output))
    model(own)
    torch.testing.assert_close(served, kept[0])
    assert not torch.allclose(served, model.served_by(batch, 2))


def test_a_task_answers_sequences_of_any_task_with_its_own_head() -> None:
    moe = moe_config("token", layers="all").model_copy(update={"experts_per_task_group": 2})
    model = make_model(model_config(moe), partition=[[0], [1], [2]])
    batch = make_batch(lengths=(7, 3, 5, 1))
    for task in range(3):
        logits = model(replace(batch, task_ids_B=torch.full((4,), task))).logits_BC
        own = logits[:, torch.isfinite(logits[0])]
        answers = model.answered_by(batch, task)
        width = own.shape[1]
        torch.testing.assert_close(answers[:, :width], own - own.mean(dim=1, keepdim=True) if width > 1 else own)
        assert not answers[:, width:].any()


def test_task_groups_that_are_copies_have_equal_features() -> None:
    moe = moe_config("token", layers="all").model_copy(update={"experts_per_task_group": 1})
    model = make_model(model_config(moe), partition=[[0], [1], [2]])
    pools = model.encoder.layers[0].feed_forward.pools
    pools["g1"].load_state_dict(pools["g0"].state_dict())
    features = model(make_batch(), [Comparison(make_batch(seed=1), layer=0, tasks=(0, 1, 2))]).features[0]
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])
