"""Freezing by module (ca_mtl.md section 10, numbers 2 and 8)."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from distmoe.errors import ConfigError
from distmoe.models.decoder_config import DecoderConfig
from distmoe.models.freezing import first_trainable_layer, frozen_layers
from distmoe.nn.conditional.module import conditional_parameters
from tests.unit.models.decoder_samples import decoder_config, make_decoder
from tests.unit.models.samples import GATES, loss_of, make_batch, make_model, model_config, moe_config
from tests.unit.models.test_conditional import conditional, stirred


@pytest.mark.parametrize(
    ("choice", "num_layers", "layers", "first"),
    [
        ("none", 4, None, 0),
        ("embeddings", 4, (), 0),
        ("lower_half", 4, (0, 1), 2),
        ("lower_half", 5, (0, 1), 2),
        ([1, 0], 3, (0, 1), 2),
        ("body", 3, (0, 1, 2), 3),
        ([2], 3, (2,), 0),
        ([], 3, (), 0),
        ([0, 1], 2, (0, 1), 2),
    ],
)
def test_choices_name_layers(choice: object, num_layers: int, layers: tuple[int, ...] | None, first: int) -> None:
    assert frozen_layers(choice, num_layers) == layers  # type: ignore[arg-type]
    assert first_trainable_layer(choice, num_layers) == first  # type: ignore[arg-type]


@pytest.mark.parametrize("choice", [[4], [-1], [1, 1]])
def test_layers_that_do_not_exist_are_refused(choice: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"model.freeze names layers.*\n.*got.*\n.*different numbers from 0 to 3"):
        frozen_layers(choice, 4)  # type: ignore[arg-type]


def test_exactly_the_backbone_of_the_chosen_layers_is_frozen() -> None:
    config = model_config(moe_config("token", layers="all"), freeze=[0], conditional=conditional())
    model = make_model(config)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    backbone = {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("encoder.embeddings.", "encoder.layers.0.")) and name not in conditional_parameters(model)
    }
    gates = {name for name in backbone if ".gate." in name}
    assert gates
    assert frozen == backbone - gates
    assert any(".pools." in name for name in frozen)


@pytest.mark.parametrize(
    ("gate", "rows"),
    [
        ("task", {"logits_ME"}),
        ("per_task", {"weight_MED"}),
        ("task_embedding", {"task_vectors.w_in_HV"}),
        ("hybrid", {"task_vectors.w_in_HV"}),
        ("sequence", {"task_vectors.w_in_HV"}),
        ("task_description", set()),  # the new task's features are its own, and nothing in the gate is
        ("token", set()),
        ("fixed", set()),
    ],
)
def test_a_frozen_body_leaves_heads_and_the_rows_of_single_tasks(gate: str, rows: set[str]) -> None:
    model = make_model(model_config(moe_config(gate), freeze="body"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    prefix = "encoder.layers.1.feed_forward.gate."
    assert trained == {"heads.weight", "heads.bias"} | {prefix + name for name in rows}


@pytest.mark.parametrize(("generator", "leaf"), [("linear", "z_Tk"), ("table", "table_Tm")])
def test_a_frozen_body_leaves_the_rows_of_conditional_tables(generator: str, leaf: str) -> None:
    model = make_model(model_config(freeze="body", conditional=conditional(generator=generator)))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.rpartition(".")[2] for name in trained - {"heads.weight", "heads.bias"}} == {leaf}


@pytest.mark.parametrize("head", ["tied", "shared"])
def test_a_frozen_body_without_parts_of_single_tasks_is_refused(head: Literal["tied", "shared"]) -> None:
    frozen = {"freeze": "body", "decoder": DecoderConfig(head=head)}
    with pytest.raises(ConfigError, match=r"nothing is left to train[\s\S]*model.decoder.head=per_task"):
        make_decoder(decoder_config(moe_config("token"), **frozen))
    rows = make_decoder(decoder_config(moe_config("task"), **frozen))
    assert [name for name, one in rows.named_parameters() if one.requires_grad] == [
        "decoder.layers.1.feed_forward.gate.logits_ME"
    ]


FROZEN_BODIES = {gate: {"moe": moe_config(gate)} for gate in GATES} | {
    f"conditional, {generator}": {"conditional": conditional(generator=generator)} for generator in ("linear", "table")
}


@pytest.mark.parametrize("changes", FROZEN_BODIES.values(), ids=FROZEN_BODIES)
def test_training_one_task_on_a_frozen_body_leaves_the_others_logits_equal_bit_for_bit(changes: dict) -> None:
    model = stirred(make_model(model_config(freeze="body", **changes)))
    others = make_batch((7, 3, 5), (0, 1, 0))
    before = model(others).logits_BC.detach()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    model.train()
    for step in range(20):
        optimizer.zero_grad()
        loss_of(model, make_batch(seed=step, task_ids=(2, 2, 2, 2))).backward()
        optimizer.step()
    model.eval()
    assert torch.equal(model(others).logits_BC, before)
    assert model.heads.weight.grad is not None
    assert model.heads.weight.grad[2].any()


def test_frozen_parameters_have_no_gradient_and_do_not_move_while_all_others_do() -> None:
    model = stirred(make_model(model_config(freeze="lower_half", conditional=conditional()))).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(100):
        optimizer.zero_grad()
        loss_of(model, make_batch(seed=step, task_ids=(0, 1, 2, 2))).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name
        assert torch.equal(parameter, before[name]) == (not parameter.requires_grad), name
