"""Controls: examples that are conditioned on another task than their own."""

from __future__ import annotations

import torch

from distmoe.nn.conditional.task_embedding import TaskConditioner

EXAMPLES = 4000


def drawn(condition_on: str, task: int, num_tasks: int = 5) -> torch.Tensor:
    conditioner = TaskConditioner(num_tasks, None, condition_on=condition_on)  # type: ignore[arg-type]
    return conditioner(torch.full((EXAMPLES,), task), torch.arange(EXAMPLES)).task_ids_B


def test_a_random_task_is_that_of_the_example_and_says_nothing_about_its_own() -> None:
    """A fair draw of 4,000 gives each of five tasks 800 +- 25: 100 is four standard deviations."""
    by_task = torch.stack([drawn("random_task", task) for task in range(5)])
    assert torch.equal(by_task[2], drawn("random_task", 2))
    for row in by_task:
        assert (torch.bincount(row, minlength=5) - EXAMPLES / 5).abs().max() < 100
    assert ((by_task[0] == by_task[1]).sum() - EXAMPLES / 5).abs() < 100
    assert ((by_task == torch.arange(5)[:, None]).sum() - EXAMPLES).abs() < 230


def test_neighbouring_examples_draw_on_their_own() -> None:
    row = drawn("random_task", 3)
    assert ((row[1:] == row[:-1]).sum() - EXAMPLES / 5).abs() < 100


def test_one_task_stands_for_all() -> None:
    assert drawn("one_task", 4).unique().tolist() == [0]
    assert torch.equal(drawn("task", 4), torch.full((EXAMPLES,), 4))
