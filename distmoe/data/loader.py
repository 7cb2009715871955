"""The training loader of one rank: steps of micro-batches, with loss weights that add up to the mixture's loss."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from distmoe.data.batch import TaskBatch
from distmoe.data.collate import collate, placeholder
from distmoe.data.config import DataConfig
from distmoe.data.encoded import EncodedTasks, ExampleStore
from distmoe.data.sampling import DrawClass, MixtureSampler
from distmoe.errors import ConfigError
from distmoe.parallel.placement import Placement
from distmoe.tasks import TaskSet


class TrainLoader:
    """Deals each optimizer step's examples to ranks and micro-batches.

    A step takes ``data.batch_size`` examples over all ranks. When colocated, which examples these are does not depend
    on the number of ranks or micro-batches.

    Args:
        encoded: Tokenized tasks.
        tasks: Tasks of the run.
        config: Batch sizes and sampling.
        placement: Which ranks may train which tasks.
        rank: This rank.
        seed: The run's seed.
        pin_memory: Page-locked tensors, for copies to a GPU that overlap with compute.

    Raises:
        ConfigError: If ``data.batch_size`` is not a multiple of ranks x ``data.micro_batch_size``.
    """

    def __init__(
        self,
        encoded: EncodedTasks,
        *,
        tasks: TaskSet,
        config: DataConfig,
        placement: Placement,
        rank: int,
        seed: int,
        pin_memory: bool = False,
    ) -> None:
        assert len(encoded.train) == len(tasks)
        self._micro_batch_size, self.accumulation_steps = _micro_batches(config, placement.num_ranks)
        per_rank = self._micro_batch_size * self.accumulation_steps
        self._store = ExampleStore.join(encoded.train)
        self._pad_token_id, self._pin_memory = encoded.pad_token_id, pin_memory
        self._class_index, host = next((i, host) for i, host in enumerate(placement.host_classes) if rank in host.ranks)
        self._place_in_class, self._class_size = host.ranks.index(rank), len(host.ranks)
        self._placeholder_task = host.tasks[0] if host.tasks else 0
        self._sampler = MixtureSampler(
            encoded.train_sizes,
            [split.lengths_N for split in encoded.train],
            classes=[DrawClass(host.tasks, len(host.ranks) * per_rank) for host in placement.host_classes],
            config=config.sampling,
            seed=seed,
        )
        # Mean over ranks and accumulation steps of sum(w * loss) with w = correction / micro-batch size is
        # sum(correction * loss) / batch_size, whose expectation is the mixture's loss (design section 3.3).
        self._loss_weight = self._sampler.correction(self._class_index) / self._micro_batch_size
        self._steps_per_epoch = max(1, sum(encoded.train_sizes) // config.batch_size)

    @property
    def mixture_weights(self) -> list[float]:
        """Each task's share of the mixture."""
        return self._sampler.weights

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that draw as many examples as all tasks have together (the mixture decides which)."""
        return self._steps_per_epoch

    def next_step(self) -> list[TaskBatch]:
        """Returns this rank's micro-batches of the next step: ``accumulation_steps`` of them, on every rank."""
        task_ids, example_ids = self._sampler.next_step()[self._class_index]
        rows = self._store.first_row_of_task[task_ids] + example_ids
        if not len(rows):
            empty = placeholder(task_id=self._placeholder_task, pad_token_id=self._pad_token_id)
            return [self._pinned(empty) for _ in range(self.accumulation_steps)]
        # In ascending length, chunk m * ranks + r goes to micro-batch m of rank r: ranks wait for each other at every
        # micro-batch, so these take neighbouring lengths.
        chunks = rows.reshape(self.accumulation_steps, self._class_size, self._micro_batch_size)
        weights = np.full(self._micro_batch_size, self._loss_weight, dtype=np.float32)
        return [
            self._pinned(collate(self._store, chunk, weights, pad_token_id=self._pad_token_id))
            for chunk in chunks[:, self._place_in_class]
        ]

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values, equal on all ranks."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly; see :meth:`MixtureSampler.load_state_dict`."""
        self._sampler.load_state_dict(state)

    def _pinned(self, batch: TaskBatch) -> TaskBatch:
        return pin(batch) if self._pin_memory else batch


def pin(batch: TaskBatch) -> TaskBatch:
    """Returns the batch in page-locked memory."""
    return replace(batch, **{field.name: getattr(batch, field.name).pin_memory() for field in fields(batch)})


def _micro_batches(config: DataConfig, num_ranks: int) -> tuple[int, int]:
    """Examples per rank and forward pass, and forward passes per step."""
    micro = config.micro_batch_size
    unit = num_ranks * (micro or 1)
    if config.batch_size % unit:
        shown = f"{num_ranks} ranks" + (f" x data.micro_batch_size={micro} = {unit}" if micro else "")
        raise ConfigError(
            "data.batch_size must be a multiple of ranks x data.micro_batch_size",
            got=f"data.batch_size={config.batch_size} on {shown}",
            expected=f"a multiple of {unit}",
            remedy=f"set data.batch_size={-(-config.batch_size // unit) * unit}, or change data.micro_batch_size",
        )
    per_rank = config.batch_size // num_ranks
    micro = micro or per_rank
    return micro, per_rank // micro
