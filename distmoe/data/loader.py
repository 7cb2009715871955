"""The training loader of one rank: steps of micro-batches, with loss weights that add up to the mixture's loss."""

from __future__ import annotations

from typing import Any, Protocol

from distmoe.data.accounts import SampleAccounts
from distmoe.data.batch import TaskBatch
from distmoe.data.config import DataConfig
from distmoe.data.dealing import Dealer
from distmoe.data.encoded import EncodedTasks
from distmoe.data.sampling import DrawClass, MixtureSampler, mixture_weights
from distmoe.parallel.placement import Placement
from distmoe.tasks import TaskSet


class StepLoader(Protocol):
    """What the trainer needs of a loader; equal in number and order of collectives on every rank."""

    @property
    def accounts(self) -> SampleAccounts: ...

    def next_step(self) -> list[TaskBatch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


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
        self._dealer = Dealer(encoded, config=config, placement=placement, rank=rank, pin_memory=pin_memory)
        self.accumulation_steps = self._dealer.accumulation_steps
        self._sampler = MixtureSampler(
            encoded.train_sizes,
            [split.lengths_N for split in encoded.train],
            classes=[
                DrawClass(host.tasks, count)
                for host, count in zip(placement.host_classes, self._dealer.examples_per_class, strict=True)
            ],
            weights=mixture_weights(encoded.train_sizes, config.sampling, names=tasks.names),
            config=config.sampling,
            seed=seed,
        )
        self._corrections = [self._sampler.correction(index) for index in range(len(placement.host_classes))]

    @property
    def accounts(self) -> SampleAccounts:
        """What has been used of the data, over all ranks."""
        return self._dealer.accounts

    @property
    def mixture_weights(self) -> list[float]:
        """Each task's share of the mixture."""
        return self._sampler.weights

    def next_step(self) -> list[TaskBatch]:
        """Returns this rank's micro-batches of the next step: ``accumulation_steps`` of them, on every rank."""
        return self._dealer.deal(self._sampler.next_step(), corrections=self._corrections)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values, equal on all ranks."""
        return self._sampler.state_dict() | {"accounts": self.accounts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly; see :meth:`MixtureSampler.load_state_dict`."""
        self._sampler.load_state_dict(state)
        self.accounts.load_state_dict(state["accounts"])
