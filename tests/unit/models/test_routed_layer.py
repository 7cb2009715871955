"""Whole layers per task group: every sequence goes through its own task group's, and nobody's gradient is missing."""

from __future__ import annotations

from dataclasses import replace

import torch

from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.parameters import Role, parameter_roles
from tests.unit.models.samples import loss_of, make_batch, make_model, model_config, moe_config

BLOCK = moe_config("task", layers=[1], unit="block", experts_per_task_group=1)
PARTITION = [[0, 2], [1]]


def dense_twin(model: MultiTaskEncoder, variant: str) -> MultiTaskEncoder:
    """A dense model with the weights of one task group."""
    twin = make_model(model_config(None))
    prefix = f"layers.1.variants.{variant}."
    own = {name.replace(prefix, "layers.1."): value for name, value in model.state_dict().items()}
    twin.load_state_dict({name: value for name, value in own.items() if ".variants." not in name})
    return twin


@torch.no_grad()
def test_every_sequence_takes_the_layer_of_its_tasks_group() -> None:
    model = make_model(model_config(BLOCK), partition=PARTITION)
    batch = make_batch(extra_padding=1)
    found = model(batch).logits_BC
    for row, task in enumerate(batch.task_ids_B.tolist()):
        expected = dense_twin(model, "g0" if task in PARTITION[0] else "g1")(batch).logits_BC
        torch.testing.assert_close(found[row], expected[row], rtol=0, atol=1e-6)
    assert not torch.allclose(dense_twin(model, "g0")(batch).logits_BC, dense_twin(model, "g1")(batch).logits_BC)


def test_the_routing_says_which_task_group_was_taken() -> None:
    model = make_model(model_config(BLOCK), partition=PARTITION)
    batch = make_batch(lengths=(2, 1), task_ids=(1, 2))
    (routing,) = model(batch).routings
    assert routing.expert_ids_TK.tolist() == [[1], [1], [0]]
    assert routing.probs_TE.tolist() == [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
    assert routing.weights_TK.tolist() == [[1.0]] * 3


def test_a_task_group_without_sequences_gets_gradients_of_zeros() -> None:
    model = make_model(model_config(BLOCK), partition=PARTITION).train()
    loss_of(model, make_batch(task_ids=(0, 2, 2, 0))).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    idle = [gradient for name, gradient in gradients.items() if ".variants.g1." in name]
    busy = [gradient for name, gradient in gradients.items() if ".variants.g0." in name]
    assert all(torch.count_nonzero(gradient) == 0 for gradient in idle)
    assert len(idle) == len(busy) == 12
    assert all(gradient.isfinite().all() for gradient in busy)
    assert any(torch.count_nonzero(gradient) for gradient in busy)


def test_a_sequence_without_tokens_disturbs_nobody() -> None:
    """The row of a rank that has no example: no token, so no task group."""
    model = make_model(model_config(BLOCK), partition=PARTITION)
    batch = make_batch(lengths=(3, 3), task_ids=(0, 1))
    no_tokens = replace(batch, token_index_T=batch.token_index_T[:3])
    with torch.no_grad():
        expected, found = model(batch).logits_BC, model(no_tokens).logits_BC
    assert torch.equal(found[0], expected[0])
    assert found[1][:2].isfinite().all()


def test_copies_start_alike_only_when_asked() -> None:
    config = model_config(BLOCK)
    names = [name for name, _ in make_model(config, partition=PARTITION).named_parameters()]
    assert [name for name in names if "expert" in name] == []
    variants = make_model(config, partition=PARTITION).encoder.layers[1].variants
    assert not torch.equal(variants["g0"].attention.qkv.weight, variants["g1"].attention.qkv.weight)
    alike = make_model(config, partition=PARTITION, alike=True).encoder.layers[1].variants
    for name, value in alike["g0"].state_dict().items():
        assert torch.equal(value, alike["g1"].state_dict()[name])


def test_roles_are_those_of_pools_with_norms_and_biases_free_of_decay() -> None:
    roles = parameter_roles(make_model(model_config(BLOCK), partition=PARTITION))
    prefix = "encoder.layers.1.variants.g1"
    assert roles[f"{prefix}.attention.qkv.weight"] == Role("pool", True, 0)
    assert roles[f"{prefix}.feed_forward.w_in"] == Role("pool", True, 0)
    assert roles[f"{prefix}.attention_norm.weight"] == Role("pool", False, 0)
    assert roles[f"{prefix}.feed_forward.b_out"] == Role("pool", False, 0)
    assert roles["encoder.layers.0.attention.qkv.weight"] == Role("dense", True, None)
