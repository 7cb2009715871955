"""The routed layer on one process against plain loops over tokens and choices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distmoe.errors import ConfigError, ParallelError
from distmoe.moe.build import build_routed_feed_forward, expert_width
from distmoe.moe.config import GateConfig, MoEConfig
from distmoe.moe.layer import RoutedFeedForward
from distmoe.moe.routing import TokenContext
from distmoe.parallel.process_groups import LayerHosting
from tests.unit.moe.layer_samples import (
    TWO_TASK_GROUPS,
    WHOLE,
    D,
    F,
    hosting_alone,
    make_layer,
    make_tokens,
    oracle,
    task_set,
)


def gradients(layer: RoutedFeedForward, x_TD: Tensor, y_TD: Tensor) -> dict[str, Tensor]:
    named = {"x": x_TD, **dict(layer.named_parameters())}
    grad_TD = torch.linspace(-1, 1, y_TD.numel(), dtype=y_TD.dtype).view_as(y_TD)
    return dict(
        zip(named, torch.autograd.grad(y_TD, list(named.values()), grad_TD, materialize_grads=True), strict=True)
    )


@pytest.mark.parametrize("partition", [WHOLE, TWO_TASK_GROUPS], ids=["one task group", "two task groups"])
@pytest.mark.parametrize("num_tokens", [0, 1, 13])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_output_and_every_gradient_equal_the_oracle_in_float64(
    partition: tuple, num_tokens: int, top_k: int, checkpointing: bool
) -> None:
    layer = make_layer(
        partition=partition, top_k=top_k, combine="raw", activation_checkpointing=checkpointing, shared_expert=False
    )
    x_TD, context = make_tokens(num_tokens)
    x_TD.requires_grad_()
    y_TD, routing = layer(x_TD, context)
    expected = oracle(layer, x_TD, routing.expert_ids_TK.tolist(), layer.gate(x_TD, context).weights_TK)
    torch.testing.assert_close(y_TD, expected, atol=1e-12, rtol=0)
    got, want = gradients(layer, x_TD, y_TD), gradients(layer, x_TD, expected)
    assert got.keys() == want.keys()
    for name in got:
        torch.testing.assert_close(got[name], want[name], atol=1e-12, rtol=0, msg=name)


@pytest.mark.parametrize("kernel", ["loop", "grouped_mm"])
@pytest.mark.parametrize("top_k", [1, 3])
def test_both_kernels_equal_the_oracle_in_float32(kernel: str, top_k: int) -> None:
    layer = make_layer(dtype=torch.float32, kernel=kernel, top_k=top_k)
    x_TD, context = make_tokens(20, torch.float32)
    x_TD.requires_grad_()
    y_TD, routing = layer(x_TD, context)
    expected = oracle(layer, x_TD, routing.expert_ids_TK.tolist(), layer.gate(x_TD, context).weights_TK)
    torch.testing.assert_close(y_TD, expected, atol=1e-5, rtol=0)
    got, want = gradients(layer, x_TD, y_TD), gradients(layer, x_TD, expected)
    for name in got:
        torch.testing.assert_close(got[name], want[name], atol=5e-5, rtol=0, msg=name)  # sums over 20 tokens


@pytest.mark.parametrize("kernel", ["loop", "grouped_mm"])
def test_all_tokens_to_one_expert(kernel: str) -> None:
    layer = make_layer(dtype=torch.float32, kernel=kernel, top_k=1, gate="task")
    with torch.no_grad():
        layer.gate.logits_ME.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]).expand(3, 4))
    x_TD, context = make_tokens(9, torch.float32)
    y_TD, routing = layer(x_TD, context)
    assert routing.expert_ids_TK.flatten().tolist() == [2] * 9
    torch.testing.assert_close(y_TD, oracle(layer, x_TD, [[2]] * 9, routing.weights_TK), atol=1e-5, rtol=0)
    y_TD.sum().backward()
    pool = layer.pools["g0"]
    for name, parameter in pool.named_parameters():
        assert [bool(grad.any()) for grad in parameter.grad] == [False, False, True, False], name


def test_equal_tokens_give_equal_outputs_and_their_gradients_add() -> None:
    layer = make_layer()
    x_TD, context = make_tokens(1)
    twice = TokenContext(context.task_ids_T.repeat(2), torch.arange(2), 2)
    y_TD, _ = layer(x_TD.repeat(2, 1), twice)
    assert torch.equal(y_TD[0], y_TD[1])
    once, _ = layer(x_TD, context)
    torch.testing.assert_close(
        torch.autograd.grad(y_TD.sum(), layer.pools["g0"].w_in)[0],
        2 * torch.autograd.grad(once.sum(), layer.pools["g0"].w_in)[0],
    )


def test_an_example_does_not_depend_on_the_others_when_dropless_and_does_with_a_capacity() -> None:
    """Invariant 5 of the task-routing specification, with its counter-check."""
    x_TD, context = make_tokens(64)
    context = TokenContext(torch.zeros_like(context.task_ids_T), context.sequence_ids_T, 64)
    order = torch.arange(63, -1, -1)

    def difference(**options: object) -> float:
        layer = make_layer(top_k=1, **options)
        with torch.no_grad():
            layer.gate.get_parameter(next(iter(dict(layer.gate.named_parameters()))))[:1].mul_(3)  # an uneven load
        return (layer(x_TD, context)[0] - layer(x_TD[order], context)[0][order]).abs().max().item()

    assert difference() <= 1e-12
    assert difference(capacity_factor=0.5) > 1e-3


def test_zero_tokens_give_a_present_zero_gradient_to_every_parameter() -> None:
    layer = make_layer(partition=TWO_TASK_GROUPS, dtype=torch.float32, shared_expert=True)
    x_TD, context = make_tokens(0, torch.float32)
    y_TD, _ = layer(x_TD.requires_grad_(), context)
    y_TD.sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_the_shared_part_adds_its_output() -> None:
    layer = make_layer(shared_expert=True)
    x_TD, context = make_tokens(5)
    with_shared, routing = layer(x_TD, context)
    expected = oracle(layer, x_TD, routing.expert_ids_TK.tolist(), routing.weights_TK) + layer.shared_mlp(x_TD)
    torch.testing.assert_close(with_shared, expected, atol=1e-12, rtol=0)


def test_drops_are_reported_with_a_capacity_and_absent_without() -> None:
    x_TD, context = make_tokens(64)
    assert make_layer(top_k=1)(x_TD, context)[1].dropped is None
    routing = make_layer(top_k=1, capacity_factor=1.0)(x_TD, context)[1]
    load = torch.bincount(routing.expert_ids_TK.flatten(), minlength=4)
    assert routing.dropped.item() == (load - 16).clamp(min=0).sum().item() > 0


def test_the_host_never_waits_for_the_device_with_one_pool_and_the_grouped_matmul(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = make_layer(dtype=torch.float32, kernel="grouped_mm")
    x_TD, context = make_tokens(8, torch.float32)

    def refuse(*_: object) -> None:
        raise AssertionError("a host synchronisation")

    for name in ("item", "tolist", "cpu", "__bool__", "__int__", "nonzero"):
        monkeypatch.setattr(Tensor, name, refuse)
    y_TD, _ = layer(x_TD.requires_grad_(), context)
    y_TD.backward(torch.ones_like(y_TD))


def test_several_pools_ask_the_host_exactly_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer(partition=TWO_TASK_GROUPS, dtype=torch.float32, kernel="grouped_mm")
    x_TD, context = make_tokens(8, torch.float32)
    calls, tolist = [], Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: calls.append(1) or tolist(self))
    layer(x_TD, context)
    assert len(calls) == 1


def test_no_parameter_or_module_name_says_expert_before_the_pools() -> None:
    """DeepSpeed recognises experts by this substring, and loses gates that lie below such a name."""
    names = [*dict(make_layer(shared_expert=True).named_modules()), *dict(make_layer().named_parameters())]
    assert not [name for name in names if "expert" in name]


def test_a_state_dict_holds_parameters_alone() -> None:
    layer = make_layer(partition=TWO_TASK_GROUPS)
    assert set(layer.state_dict()) == set(dict(layer.named_parameters()))
    assert {f"pools.g{g}.{key}" for g in (0, 1) for key in ("w_in", "b_in", "w_out", "b_out")} < set(layer.state_dict())


def build(config: MoEConfig, hosting: LayerHosting | None = None, partition: tuple = WHOLE) -> RoutedFeedForward:
    return build_routed_feed_forward(
        config,
        layer_index=3,
        routed_index=1,
        hidden_size=D,
        intermediate_size=F,
        activation="gelu",
        tasks=task_set(),
        partition=partition,
        hosting=hosting or hosting_alone(len(partition)),
    )


def test_experts_that_do_not_divide_by_task_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer 3(.|\n)*5 experts for 2 task groups(.|\n)*multiple of 2"):
        build(MoEConfig(num_experts=5), partition=TWO_TASK_GROUPS)


def test_experts_that_do_not_divide_by_ranks_are_refused() -> None:
    with pytest.raises(ParallelError, match=r"6 experts on 4 ranks(.|\n)*ep_size"):
        build(MoEConfig(num_experts=6), LayerHosting((0,), 0, 4, None))


def test_more_choices_than_experts_of_a_task_group_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer 3(.|\n)*2 experts in the smallest task group, model.moe.top_k 4"):
        build(MoEConfig(num_experts=4, top_k=4), partition=TWO_TASK_GROUPS)


@pytest.mark.parametrize("kind", ["task", "fixed"])
def test_capacity_with_a_task_level_gate_is_refused(kind: str) -> None:
    gate = GateConfig(kind=kind, table="random" if kind == "fixed" else None)
    with pytest.raises(ConfigError, match=rf"capacity_factor 1.25 with gate {kind}(.|\n)*dropless"):
        build(MoEConfig(capacity_factor=1.25, gate=gate))


def test_expert_width_matches_dense_compute_unless_configured() -> None:
    assert expert_width(MoEConfig(top_k=4), 64) == 16
    assert expert_width(MoEConfig(top_k=4, expert_size=24), 64) == 24
    with pytest.raises(ConfigError, match=r"width 64, model.moe.top_k 3(.|\n)*expert_size"):
        expert_width(MoEConfig(top_k=3), 64)
