"""The conditional bottleneck and the alignment, by formula and by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from distmoe.errors import ConfigError
from distmoe.nn.conditional import ConditionalAlignment, ConditionalBottleneck, TaskConditioner, reset_conditional
from distmoe.nn.conditional.generator import GeneratorFactory
from tests.unit.nn.conditional.samples import TASK_IDS_B, TASKS, B, D, states, stirred

K = 5
GENERATORS = GeneratorFactory("linear", TASKS, K)


def conditioner() -> TaskConditioner:
    made = TaskConditioner(TASKS, K)
    reset_conditional(made, 0, "c", 0.02)
    return made


def test_bottleneck_equals_the_loop_over_rows() -> None:
    bottleneck = ConditionalBottleneck(D, 4, activation="gelu", generators=GENERATORS)
    reset_conditional(bottleneck, 0, "b", 0.02)
    stirred(bottleneck)
    tasks = conditioner()
    result = bottleneck(states(), torch.full_like(states(), torch.nan), tasks(TASK_IDS_B))
    for row in range(B):
        generated = bottleneck.generator.weight @ tasks.z_Tk[TASK_IDS_B[row]] + bottleneck.generator.bias
        gamma, beta = generated[:D], generated[D:]
        h = states()[row]
        inner = F.gelu(((1 + gamma) * h + beta) @ bottleneck.w_down.T)
        torch.testing.assert_close(result[row], h + inner @ bottleneck.w_up.T, atol=1e-6, rtol=1e-6)


def test_bottleneck_starts_at_zero_up_and_random_down() -> None:
    bottleneck = ConditionalBottleneck(D, 4, activation="gelu", generators=GENERATORS)
    reset_conditional(bottleneck, 0, "b", 0.02)
    assert bottleneck.w_up.abs().max() == 0
    assert bottleneck.w_down.abs().min() > 0
    assert torch.equal(bottleneck(states(), states(), conditioner()(TASK_IDS_B)), states())


def test_bottleneck_refuses_an_unknown_activation() -> None:
    with pytest.raises(ConfigError, match=r"(?s)unknown activation.*mish.*gelu"):
        ConditionalBottleneck(D, 4, activation="mish", generators=GENERATORS)


def test_alignment_by_hand() -> None:
    """Width 2, one dimension of z: z = 2 for task 0, -1 for task 1; gamma = (z, 0), beta = (1, 3z).

    Task 0: (1+2) x0 + 1, x1 + 6. Task 1: (1-1) x0 + 1, x1 - 3.
    """
    alignment = ConditionalAlignment(2, GeneratorFactory("linear", 2, 1))
    tasks = TaskConditioner(2, 1)
    with torch.no_grad():
        tasks.z_Tk.copy_(torch.tensor([[2.0], [-1.0]]))
        alignment.generator.weight.copy_(torch.tensor([[1.0], [0.0], [0.0], [3.0]]))
        alignment.generator.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
    x_BSD = torch.tensor([[[10.0, 20.0]], [[10.0, 20.0]]])
    assert alignment(x_BSD, tasks(torch.tensor([0, 1]))).tolist() == [[[31.0, 26.0]], [[1.0, 17.0]]]
