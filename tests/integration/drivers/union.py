"""Trains on one process what N ranks train together: ``union.py N EP_SIZE MODE ARGUMENTS...``.

Placed on N ranks, task groups decide which examples a step takes and how they weigh. Here one process takes the union
of all ranks' examples with these weights, whatever the task groups have become; all else is the ordinary run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from distmoe import train
from distmoe.data.batch import TaskBatch
from distmoe.parallel.placement import place
from distmoe.training import workshop


class UnionLoader:
    """One rank's view of all ranks' steps."""

    def __init__(self, loaders: list[Any]) -> None:
        self._loaders = loaders

    @property
    def accounts(self) -> Any:
        return self._loaders[0].accounts

    def next_step(self) -> list[TaskBatch]:
        """Loss weights are for the mean over ranks, so each of them is divided by their number."""
        parts = [batch for loader in self._loaders for batch in loader.next_step()]
        assert len(parts) == len(self._loaders), "one micro-batch per rank"
        real = [part.example_mask_B.numpy() for part in parts]
        tasks, examples, weights = (
            np.concatenate([getattr(part, name).numpy()[mask] for part, mask in zip(parts, real, strict=True)])
            for name in ("task_ids_B", "example_ids_B", "loss_weights_B")
        )
        dealer = self._loaders[0]._dealer
        return [dealer.batch(dealer.rows(tasks, examples), (weights / len(parts)).astype(np.float32))]

    def state_dict(self) -> dict[str, Any]:
        return self._loaders[0].state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for loader in self._loaders:
            loader.load_state_dict(state)


def main() -> None:
    num_ranks, ep_size, mode, *arguments = sys.argv[1:]
    assemble = workshop.Workshop.assemble

    def assembled(self: Any, plan: Any, *args: Any, **kwargs: Any) -> Any:
        placement = place(plan.grouping, self.data.weights, num_ranks=int(num_ranks), ep_size=int(ep_size), mode=mode)
        workshop._build_loader = lambda config, data, *_, **__: UnionLoader(
            [data.train_loader(placement, rank=rank, pin_memory=False) for rank in range(placement.num_ranks)]
        )
        return assemble(self, plan, *args, **kwargs)

    workshop.Workshop.assemble = assembled
    train._leave(train.main(arguments))


if __name__ == "__main__":
    main()
