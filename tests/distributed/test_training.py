"""What trainer parts say to each other over ranks: errors, windows, stop flags, evaluation rows."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
import torch.distributed as dist

from distmoe.errors import DataError, DistmoeError, TrainingError
from distmoe.tasks import TaskGrouping
from distmoe.training.agreement import Agreement
from distmoe.training.border import Border, agree, refuse_nonfinite
from distmoe.training.evaluate import evaluate, gather_rows
from distmoe.training.objective import Objective
from distmoe.training.window import LossWindow
from tests.distributed.harness import run_ranks
from tests.unit.training.samples import TASKS, batch, output
from tests.unit.training.test_evaluate import Echo


def collectives(rank: int) -> dict[str, Any]:
    """All of it in one world of two ranks: starting ranks is what costs."""
    return {"errors": _errors(rank), "window": _window(rank), "border": _border(rank), "evaluation": _evaluation(rank)}


def _errors(rank: int) -> list[str]:
    agreement = Agreement()
    seen = []

    def fail_on(failing: int, *, wait: bool) -> None:
        """With ``wait``, the other rank is in a barrier inside the function, as when one rank builds a cache."""

        def work() -> None:
            if rank == failing:
                raise DataError("broken", got=f"rank {rank}", expected="whole", remedy="mend it")
            if wait:
                agreement.barrier()

        try:
            agreement.run(work)
        except DistmoeError as error:
            seen.append(f"{type(error).__name__}: {error}")

    for failing in (0, 1):
        for wait in (False, True):
            fail_on(failing, wait=wait)
    assert agreement.run(lambda: rank) == rank
    seen.append(agreement.from_rank_0(lambda: f"decided on rank {rank}"))
    return seen


def _losses(values: list[float], first_id: int) -> tuple[Any, Any]:
    rows = batch([1] * len(values), [0.0] * len(values), example_ids=list(range(first_id, first_id + len(values))))
    logits = torch.tensor([[value, -math.inf, -math.inf] for value in values])
    return Objective(TASKS, TaskGrouping(3, ()), weights=None)(output(logits), rows), rows


def _window(rank: int) -> Any:
    window = LossWindow(3)
    window.add(_losses([1.0] if rank == 0 else [2.0, 3.0], 0)[0], num_tokens=rank + 1)
    return window.summary()


def _border(rank: int) -> tuple[Any, str]:
    losses, rows = _losses([1.0] if rank == 0 else [math.nan], first_id=10 * rank)
    flags = agree([losses], stop=rank == 0, save_failed=rank == 1)
    try:
        refuse_nonfinite(3, [losses], [rows], TASKS)
    except TrainingError as error:
        return flags, str(error.got)


def _evaluation(rank: int) -> tuple[Any, Any]:
    logging.disable()
    rows = gather_rows(torch.full((2 * rank, 1), float(rank)))
    own = [batch([0], [1.0], example_ids=[0]), batch([1], [0.5], example_ids=[2])]
    others = [batch([1, 1], [1.5, -2.0], example_ids=[0, 1]), batch([0], [0.0], mask=[False])]
    found = evaluate(Echo(), own if rank == 0 else others, split="validation", tasks=TASKS, sizes=(1, 3, 0))
    dist.barrier()
    return rows.tolist(), [(row.task, row.score, row.num_examples) for row in found.tasks]


def test_ranks_agree_on_errors_windows_stops_and_scores() -> None:
    first, second = run_ranks(collectives, 2)
    assert first == second
    errors = first["errors"]
    assert [text.split("\n")[1].strip() for text in errors[:4]] == ["got:      rank 0"] * 2 + ["got:      rank 1"] * 2
    assert all(text.startswith("DataError: broken") for text in errors[:4])
    assert errors[4] == "decided on rank 0"
    # Rank 0: one row of loss 1; rank 1: losses 4 and 9. The mixture's loss is the mean over ranks of weighted sums.
    window = first["window"]
    assert (window.loss, window.tokens, window.examples) == ((1 + 13) / 2, 3, (0, 3, 0))
    assert window.task_losses == (None, 14 / 3, None)
    assert first["border"] == (Border(finite=False, stop=True, save_failed=True), "not finite for size#10")
    assert first["evaluation"] == ([[1.0], [1.0]], [("colour", 1.0, 1), ("size", 1.0, 3)])
