"""A conditional model against the plain one (ca_mtl.md section 10, numbers 1, 2 and 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from distmoe.checkpoint.import_hf import load_pretrained
from distmoe.errors import ConfigError
from distmoe.models.config import ModelConfig
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.shape import shape_of_folder
from distmoe.nn.conditional.config import ConditionalConfig
from distmoe.nn.conditional.module import conditional_parameters
from distmoe.nn.init import init_normal_
from tests.unit.checkpoint.samples import minilm_folder
from tests.unit.models.samples import TASKS, gate_config, loss_of, make_batch, make_model, model_config, moe_config

ALL: dict[str, Any] = {
    "embedding_size": 6,
    "attention": {"layers": "all", "block_side": 3, "max_length": 6},
    "layer_norm": {"layers": "all"},
    "bottleneck": {"layers": "all"},
}
LAYERS = {"dense": None, "routed": moe_config("task", layers="all"), "token-routed": moe_config("token", layers="all")}


def conditional(**changes: Any) -> ConditionalConfig:
    return ConditionalConfig.model_validate(ALL | changes)


def stirred(model: MultiTaskEncoder) -> MultiTaskEncoder:
    """Every conditional parameter away from its identity."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in conditional_parameters(model):
            init_normal_(parameters[name], seed=1, name=name, std=0.3)
    return model


def logits(model: MultiTaskEncoder, **batch: Any) -> torch.Tensor:
    return torch.nan_to_num(model(make_batch(**batch)).logits_BC, neginf=0.0)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("layers", LAYERS)
def test_before_training_it_is_the_plain_model_for_every_task(layers: str, norm: str) -> None:
    config = model_config(LAYERS[layers], norm=norm)
    plain, mine = make_model(config), make_model(config.model_copy(update={"conditional": conditional()}))
    for task in range(len(TASKS)):
        assert (logits(mine, task_ids=(task,) * 4) - logits(plain, task_ids=(task,) * 4)).abs().max() <= 1e-6


@pytest.mark.parametrize("freeze", ["none", "lower_half"])
def test_it_is_the_pretrained_encoder_at_first_for_every_task(freeze: str) -> None:
    """All 6 layers of a real checkpoint, every module in every layer it may stand in by default."""
    folder = minilm_folder()
    shape = shape_of_folder(folder)
    values: dict[str, Any] = {"pretrained": str(folder), "moe": None, "dropout": 0.0, "attention_dropout": 0.0}
    configs = (ModelConfig(**values), ModelConfig(**values, freeze=freeze, conditional=ConditionalConfig()))
    plain, mine = (make_model(config, shape=shape) for config in configs)
    for model, config in zip((plain, mine), configs, strict=True):
        report = load_pretrained(model, folder, config=config, seed=0)
    assert "0 missing, 0 unexpected" in str(report)
    assert all("generator" not in name for name in report.fresh)
    batch = {"lengths": (40, 9, 140), "vocab_size": shape.vocab_size}
    for task in range(len(TASKS)):
        batch_of_task = make_batch(task_ids=(task,) * 3, **batch)
        with torch.no_grad():
            states = [
                model.encoder(batch_of_task, model(batch_of_task).context)[0][batch_of_task.attention_mask_BS]
                for model in (plain, mine)
            ]
        assert (states[0] - states[1]).abs().max() <= 1e-6


def test_dropout_falls_on_the_same_entries_before_training() -> None:
    config = model_config(dropout=0.2)  # attention dropout: another kernel may draw other masks for a float mask
    found = []
    for one in (config, config.model_copy(update={"conditional": conditional()})):
        model = make_model(one).train()
        torch.manual_seed(3)
        found.append(logits(model))
    assert (found[0] - found[1]).abs().max() <= 1e-6


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("layers", LAYERS)
def test_a_mixed_batch_gives_what_each_row_gives_alone(layers: str, norm: str) -> None:
    model = stirred(make_model(model_config(LAYERS[layers], norm=norm, conditional=conditional())))
    mixed = logits(model, lengths=(7, 3, 5, 2), task_ids=(0, 1, 2, 1))
    plain = logits(make_model(model_config(LAYERS[layers], norm=norm)), lengths=(7, 3, 5, 2), task_ids=(0, 1, 2, 1))
    assert (mixed - plain).abs().max() > 0.05, "stirring changed nothing, so nothing is compared below"
    whole = make_batch((7, 3, 5, 2), (0, 1, 2, 1))
    for task in range(3):
        rows = (whole.task_ids_B == task).nonzero().squeeze(1)
        index_T = whole.attention_mask_BS[rows].flatten().nonzero().squeeze(1)
        alone = replace(whole.map(lambda tensor: tensor[rows]), token_index_T=index_T)  # noqa: B023
        assert (torch.nan_to_num(model(alone).logits_BC, neginf=0.0) - mixed[rows]).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("changes", "computed"),
    [
        ({}, 1),
        ({"norm": "pre"}, 1),
        ({"conditional": conditional()}, 1),
        ({"conditional": conditional(), "norm": "pre"}, 1),
        ({"pooling": "mean"}, 7),
        ({"moe": moe_config("token", layers=[0])}, 1),
        ({"moe": moe_config("token", layers=[1])}, 7),
        ({"conditional": ConditionalConfig.model_validate({"mode": "repo", "repo_layout": "large",
                                                           "attention": {"max_length": 8}})}, 7),
    ],
)  # fmt: skip
def test_evaluation_computes_of_the_last_layer_what_the_pooler_reads(changes: dict[str, Any], computed: int) -> None:
    """Nothing else may differ from training without dropout, which computes all positions: logits nor gradients."""
    model = stirred(make_model(model_config(**changes)))
    positions: list[int] = []
    model.encoder.layers[-1].register_forward_hook(lambda _, __, result: positions.append(result[0].shape[1]))
    batch, found, gradients = make_batch(), [], []
    for training in (False, True):
        model.train(training).zero_grad()
        output = model(batch)
        found.append(torch.nan_to_num(output.logits_BC, neginf=0.0))
        loss_of(model, batch).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        assert len(output.routings) == ("moe" in changes)
    assert positions == [computed] * 2 + [7] * 2
    assert (found[0] - found[1]).abs().max() <= 1e-6
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_tasks_embedding_changes_that_task_only() -> None:
    model = stirred(make_model(model_config(conditional=conditional())))
    before = logits(model)
    with torch.no_grad():
        model.encoder.conditioner.z_Tk[1] += 1.0
    changed = (logits(model) - before).abs().amax(dim=1) > 1e-4
    assert changed.tolist() == [False, True, False, True]  # task ids 0, 1, 2, 1


def test_absent_tasks_get_exactly_zero_gradients() -> None:
    model = stirred(make_model(model_config(conditional=conditional(generator="table"))))
    loss_of(model, make_batch(task_ids=(0, 1, 0, 1))).backward()
    tables = {name: p for name, p in model.named_parameters() if name.endswith("table_Tm")}
    assert len(tables) == 9  # alignment; bias, two norms and a bottleneck in both layers
    for name, table in tables.items():
        assert table.grad[2].count_nonzero() == 0, name
        assert table.grad[:2].count_nonzero() > 0, name


@pytest.mark.parametrize("layers", LAYERS)
def test_recomputation_changes_no_gradient(layers: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        config = model_config(LAYERS[layers], conditional=conditional(), activation_checkpointing=checkpointing)
        model = stirred(make_model(config)).train()
        loss_of(model, make_batch()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-7), name


def test_a_router_trains_generators_unless_its_input_is_detached() -> None:
    """Balance and z losses read the router alone: what they send into conditioning is all that is measured here."""
    norms = {}
    for detached in (False, True):
        moe = moe_config(gate_config("token", detach_input=detached), layers="all")
        model = stirred(make_model(model_config(moe, conditional=conditional())))
        sum(routing.logits_TE.square().mean() for routing in model(make_batch()).routings).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        norms[detached] = [gradients[name].norm().item() for name in conditional_parameters(model) if name in gradients]
        assert gradients["encoder.layers.1.feed_forward.gate.weight_ED"].norm() > 0
    assert sum(norms[False]) > 0
    assert sum(norms[True]) == 0


def test_published_structure_runs_in_both_layouts() -> None:
    for layout in ("base", "large"):
        values = {"mode": "repo", "repo_layout": layout, "attention": {"max_length": 8}}
        model = make_model(model_config(conditional=ConditionalConfig.model_validate(values)))
        assert logits(model).isfinite().all()
        assert (model.encoder.chain is not None) == (layout == "large")


def test_weight_decay_spares_what_modulates() -> None:
    from distmoe.models.parameters import parameter_roles

    model = make_model(model_config(LAYERS["routed"], conditional=conditional()))
    roles = parameter_roles(model)
    added = conditional_parameters(model)
    assert added
    assert {roles[name].kind for name in added} == {"dense"}
    assert {name.rsplit(".", 1)[1] for name in added if roles[name].decay} == {"w_down", "w_up"}


def test_the_lowest_conditioned_layer_follows_freezing() -> None:
    values = conditional(condition_from="first_trainable", **{key: {} for key in ("attention", "bottleneck")})
    values = ConditionalConfig.model_validate(values.model_dump() | {"layer_norm": {"layers": "all"}})
    model = make_model(model_config(freeze="lower_half", conditional=values, num_layers=4))
    assert model.encoder.alignment is None
    with_norm = [hasattr(layer.attention_norm, "generator") for layer in model.encoder.layers]
    assert with_norm == [False, False, True, True]


def test_conditioning_below_the_first_trainable_layer_is_refused() -> None:
    config = model_config(freeze="lower_half", conditional=conditional(
        condition_from="first_trainable", layer_norm={"layers": [0, 1]}
    ))  # fmt: skip
    with pytest.raises(ConfigError, match=r"model.conditional.layer_norm.layers does not fit.*\n.*\n.*from 1 to 1"):
        make_model(config)
