"""Conditional layer normalisation against a loop over tasks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmoe.nn.conditional import ConditionalLayerNorm, TaskConditioner, reset_conditional
from distmoe.nn.conditional.film import layer_norm_of
from distmoe.nn.conditional.generator import GeneratorFactory
from distmoe.nn.conditional.layer_norm import LayerNormForm
from tests.unit.nn.conditional.samples import TASK_IDS_B, TASKS, D, states, stirred

FORMS: list[LayerNormForm] = ["scale_and_bias", "scale_only", "published"]
K = 5


def make(form: LayerNormForm, *, trained_values: bool = True) -> tuple[ConditionalLayerNorm, TaskConditioner]:
    norm = ConditionalLayerNorm(D, eps=1e-12, form=form, generators=GeneratorFactory("linear", TASKS, K))
    conditioner = TaskConditioner(TASKS, K)
    for module in (norm, conditioner):
        reset_conditional(module, 0, "m", 0.02)
        if trained_values:
            stirred(module)
    return norm, conditioner


def oracle(norm: ConditionalLayerNorm, conditioner: TaskConditioner, x_BSD: Tensor, task_ids_B: Tensor) -> Tensor:
    """The formulas of the forms, task by task, with the mean and the variance written out."""
    result = torch.empty_like(x_BSD)
    for task in range(TASKS):
        generated = norm.generator.weight @ conditioner.z_Tk[task] + norm.generator.bias
        gamma = generated[:D]
        beta = torch.zeros(D) if norm.form == "scale_only" else generated[D:]
        x = x_BSD[task_ids_B == task]
        centred = x - x.mean(-1, keepdim=True)
        n = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        if norm.form == "published":
            y = n * ((1 + gamma) * norm.weight + beta) + norm.bias
        else:
            y = n * norm.weight * (1 + gamma) + (norm.bias + beta)
        result[task_ids_B == task] = y
    return result


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_loop_over_tasks(form: LayerNormForm) -> None:
    norm, conditioner = make(form)
    torch.testing.assert_close(
        norm(states(), conditioner(TASK_IDS_B)),
        oracle(norm, conditioner, states(), TASK_IDS_B),
        atol=1e-6,
        rtol=1e-6,
    )


@pytest.mark.parametrize("form", FORMS)
def test_gradients_equal_those_of_the_loop(form: LayerNormForm) -> None:
    norm, conditioner = make(form)
    x_BSD = states().requires_grad_()
    inputs = [x_BSD, norm.weight, norm.bias, norm.generator.weight, norm.generator.bias, conditioner.z_Tk]
    fast = norm(x_BSD, conditioner(TASK_IDS_B))
    slow = oracle(norm, conditioner, x_BSD, TASK_IDS_B)
    for mine, expected in zip(
        torch.autograd.grad((fast * states(seed=4)).sum(), inputs),
        torch.autograd.grad((slow * states(seed=4)).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_backward_keeps_one_tensor_of_the_size_of_the_states(form: LayerNormForm) -> None:
    norm, conditioner = make(form)
    x_BSD = states(length=50).requires_grad_()
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        norm(x_BSD, conditioner(TASK_IDS_B))
    assert [numel for numel in kept if numel >= x_BSD.numel()] == [x_BSD.numel()]


@pytest.mark.parametrize("form", FORMS)
def test_folds_into_the_plain_layer_norm_of_each_task(form: LayerNormForm) -> None:
    norm, conditioner = make(form)
    result = norm(states(), conditioner(TASK_IDS_B))
    for row, task in enumerate(TASK_IDS_B.tolist()):
        (weight_D,), (bias_D,) = norm.constants(conditioner(torch.tensor([task])))
        folded = layer_norm_of(weight_D, bias_D, eps=norm.eps)
        torch.testing.assert_close(folded(states()[row]), result[row], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("form", ["scale_and_bias", "scale_only"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_training_it_is_bitwise_the_plain_layer_norm(form: LayerNormForm, dtype: torch.dtype) -> None:
    norm, conditioner = make(form, trained_values=False)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    nn.init.normal_(norm.bias)
    norm.to(dtype)
    conditioner.to(dtype)
    x_BSD = states().to(dtype)
    plain = F.layer_norm(x_BSD.float(), (D,), norm.weight.float(), norm.bias.float(), norm.eps).to(dtype)
    assert torch.equal(norm(x_BSD, conditioner(TASK_IDS_B)), plain)


def test_half_precision_keeps_a_gamma_below_its_own_resolution() -> None:
    """1 + 2^-10 is 1 in bfloat16; over many entries the mean output must still grow by 2^-10."""
    norm, conditioner = make("scale_only", trained_values=False)
    norm.bfloat16()
    conditioning = conditioner.bfloat16()(torch.zeros(400, dtype=torch.long))
    x_BSD = states(rows=400, length=20).bfloat16()
    before = norm(x_BSD, conditioning).float().abs().sum()
    with torch.no_grad():
        norm.generator.bias.fill_(2**-10)
    after = norm(x_BSD, conditioning).float().abs().sum()
    assert (after / before - 1).item() == pytest.approx(2**-10, rel=0.2)


def test_weight_and_bias_have_the_names_of_a_layer_norm() -> None:
    norm, _ = make("scale_and_bias")
    assert nn.LayerNorm(D).state_dict().keys() <= norm.state_dict().keys()
    assert isinstance(norm, nn.LayerNorm)
