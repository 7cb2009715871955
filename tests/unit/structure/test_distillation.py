"""The amalgamation loss in loops, and what its minimum is.

Shape letters: B sequences, S positions, D model width.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distmoe.seed import generator
from distmoe.structure.distillation import AmalgamationLoss, ChannelGate

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
REAL = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def hidden(key: object, width: int = 6) -> Tensor:
    values = torch.randn(2, 4, width, generator=generator(0, "test", key))
    return values.masked_fill(~MASK.bool().unsqueeze(-1), float("nan"))  # padding must not matter


def looped(student: Tensor, teachers: list[Tensor], gates: list[ChannelGate] | None) -> float:
    """The loss as written: per member, the mean of (F_k - c_k F)^2 over all elements of real tokens."""
    total = 0.0
    for k, teacher in enumerate(teachers):
        squares = []
        for b, s in REAL:
            gate = torch.ones(student.shape[2])
            if gates is not None:
                pooled = torch.stack([student[i, j] for i, j in REAL if i == b]).mean(0)
                inner = (gates[k].w_in @ pooled + gates[k].b_in).clamp_min(0)
                gate = torch.sigmoid(gates[k].w_out @ inner + gates[k].b_out)
            squares += (teacher[b, s] - gate * student[b, s]).square().tolist()
        total += sum(squares) / len(squares)
    return total


@pytest.mark.parametrize("gates", ["none", "dropped"])
def test_the_loss_is_its_formula(gates):
    student, teachers = hidden("s"), [hidden(k) for k in range(3)]
    loss = AmalgamationLoss(3, 6, gates=gates, gate_size=5)
    loss.reset(0, "amalgamation")
    own = list(loss.gates) if loss.gates is not None else None
    assert loss(student, teachers, MASK).item() == pytest.approx(looped(student, teachers, own), abs=1e-5)


def test_without_gates_the_best_student_is_the_mean_of_the_teachers():
    teachers = [hidden(k) for k in range(3)]
    student = (sum(teachers) / 3).nan_to_num().requires_grad_()
    AmalgamationLoss(3, 6, gates="none")(student, teachers, MASK).backward()
    assert student.grad.abs().max() < 1e-6


def test_student_and_gates_get_gradients_and_teachers_do_not():
    student, teacher = hidden("s").nan_to_num().requires_grad_(), hidden("t").nan_to_num().requires_grad_()
    loss = AmalgamationLoss(1, 6, gates="dropped")
    loss.reset(0, "amalgamation")
    loss(student, [teacher], MASK).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in loss.parameters())


def test_padding_gets_no_gradient():
    student = hidden("s").nan_to_num().requires_grad_()
    AmalgamationLoss(1, 6, gates="none")(student, [hidden("t")], MASK).backward()
    assert not student.grad[~MASK.bool()].any()


def test_each_gate_has_its_own_weights_that_depend_on_seed_and_name_only():
    losses = [AmalgamationLoss(2, 6, gates="dropped") for _ in range(2)]
    for loss in losses:
        loss.reset(3, "amalgamation")
    first, second = losses[0].gates
    assert torch.equal(first.w_in, losses[1].gates[0].w_in)
    assert not torch.equal(first.w_in, second.w_in)


def test_a_loss_without_gates_has_no_parameters():
    assert list(AmalgamationLoss(4, 6, gates="none").parameters()) == []
