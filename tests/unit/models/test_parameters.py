import pytest

from distmoe.models.parameters import Role, parameter_roles
from tests.unit.models.samples import GATES, make_model, model_config, moe_config


def test_roles_of_a_routed_model() -> None:
    config = model_config(moe_config("hybrid", layers=[1, 3], shared_expert=True), num_layers=4)
    roles = parameter_roles(make_model(config, partition=[[0, 1], [2]]))
    routed = "encoder.layers.3.feed_forward"
    expected = {
        "encoder.embeddings.word.weight": Role("dense", True, None),
        "encoder.embeddings.norm.weight": Role("dense", False, None),
        "encoder.layers.0.attention.qkv.weight": Role("dense", True, None),
        "encoder.layers.0.attention.qkv.bias": Role("dense", False, None),
        "encoder.layers.0.attention_norm.weight": Role("dense", False, None),
        "encoder.layers.0.feed_forward.w_in": Role("dense", True, None),
        "encoder.layers.0.feed_forward.b_in": Role("dense", False, None),
        "encoder.layers.1.feed_forward.pools.g1.w_out": Role("pool", True, 0),
        f"{routed}.gate.weight_ED": Role("gate", True, 1),
        f"{routed}.gate.task_vectors.norm_weight_U": Role("gate", False, 1),
        f"{routed}.pools.g0.w_in": Role("pool", True, 1),
        f"{routed}.pools.g1.b_out": Role("pool", False, 1),
        f"{routed}.shared_mlp.w_in": Role("dense", True, None),
        "pooler.dense.weight": Role("dense", True, None),
        "heads.weight": Role("head", True, None),
        "heads.bias": Role("head", False, None),
    }
    assert {name: roles[name] for name in expected} == expected


@pytest.mark.parametrize("gate", GATES)
def test_every_parameter_has_a_role_in_the_models_order(gate: str) -> None:
    model = make_model(model_config(moe_config(gate)))
    assert list(parameter_roles(model)) == [name for name, _ in model.named_parameters()]


def test_frozen_parameters_have_no_role_and_do_not_shift_layer_numbers() -> None:
    model = make_model(model_config(moe_config(layers=[0, 1])))
    for parameter in model.encoder.layers[0].parameters():
        parameter.requires_grad_(False)
    roles = parameter_roles(model)
    assert not any(name.startswith("encoder.layers.0.") for name in roles)
    assert roles["encoder.layers.1.feed_forward.pools.g0.w_in"].routed_index == 1
