"""The choice of two ranks that score disjoint parts of a pool is the choice of one process."""

from __future__ import annotations

from typing import Any

import torch

from distmoe.data.config import DataConfig, SamplingConfig
from distmoe.data.pool_loader import PoolLoader
from distmoe.training.uncertainty import Scorer, UncertaintyLoader
from tests.distributed.harness import run_ranks
from tests.unit.data import toy
from tests.unit.training.samples import output


class Rounded:
    """Logits that depend on the first token only; counts its forward passes."""

    device = torch.device("cpu")
    passes = 0

    def __call__(self, batch: Any) -> Any:
        self.passes += 1
        first_B = batch.input_ids_BS[:, 0].float()
        return output(torch.stack([torch.sin(first_B), torch.zeros_like(first_B)], dim=1))

    def eval_mode(self) -> None: ...
    def train_mode(self) -> None: ...


def choices(rank: int, classes: list[tuple[int, tuple[int, ...]]]) -> tuple[list[list[tuple[int, int]]], int]:
    config = DataConfig(batch_size=8, eval_batch_size=3, sampling=SamplingConfig(strategy="uncertainty"))
    tasks, engine = toy.tasks(3), Rounded()
    pools = PoolLoader(
        toy.encoded((20, 9, 33)), tasks=tasks, config=config, placement=toy.placement(classes), rank=rank, seed=0
    )
    score = Scorer(tasks, regression_score={}, label_variances=[1.0] * 3)
    loader = UncertaintyLoader(pools, engine=engine, scorer=score)
    steps = []
    for _ in range(6):
        batches = loader.next_step()
        task_ids = [task for batch in batches for task in batch.task_ids_B.tolist()]
        example_ids = [example for batch in batches for example in batch.example_ids_B.tolist()]
        steps.append(list(zip(task_ids, example_ids, strict=True)))
    return steps, engine.passes


def test_two_ranks_choose_what_one_process_chooses() -> None:
    alone, _ = choices(0, [(1, (0, 1, 2))])
    (first, passes), (second, other_passes) = run_ranks(choices, 2, [(2, (0, 1, 2))])
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(step) for step in alone]
    assert passes == other_passes == 6 * 4  # 24 candidates, 12 on a rank, 3 at a time


def test_ranks_with_disjoint_tasks_score_and_choose_their_own() -> None:
    (first, passes), (second, other_passes) = run_ranks(choices, 2, [(1, (0,)), (1, (1, 2))])
    assert {task for step in first for task, _ in step} == {0}
    assert {task for step in second for task, _ in step} <= {1, 2}
    assert passes == other_passes
