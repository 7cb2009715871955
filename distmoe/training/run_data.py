"""The data of a run: which tasks and tokenizer, then token ids, then loaders."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from distmoe.data.encoded import EncodedTasks
from distmoe.data.eval_loader import EvalLoader
from distmoe.data.loader import TrainLoader
from distmoe.data.pool_loader import PoolLoader
from distmoe.data.prepare import SplitReport, encode_tasks
from distmoe.data.sampling import mixture_weights
from distmoe.data.sources import TaskSource, load_tasks
from distmoe.data.tokenizer import resolve_tokenizer
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.parallel.env import RankEnv
from distmoe.parallel.placement import Placement
from distmoe.tasks import TaskSet
from distmoe.training.agreement import Agreement
from distmoe.training.answers import Answers
from distmoe.training.config import RunConfig
from distmoe.training.summary import TaskSize


@dataclass(frozen=True)
class Sources:
    """Tasks and tokenizer, before any example is read."""

    tasks: TaskSet
    source: TaskSource
    tokenizer: PreTrainedTokenizerBase

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)

    @property
    def pad_token_id(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)  # type: ignore[arg-type]


def open_sources(config: RunConfig) -> Sources:
    """Finds the tasks and the tokenizer.

    Raises:
        DistmoeError: If a task or the tokenizer is missing or contradicts itself.
    """
    tasks, source = load_tasks(config.tasks, config.data)
    return Sources(tasks, source, resolve_tokenizer(config.data, pretrained=config.model.pretrained, source=source))


@dataclass(frozen=True)
class RunData:
    """Token ids of all splits.

    Attributes:
        weights: Mixture weight per task.
        sizes: Examples per task and split.
    """

    config: RunConfig
    tasks: TaskSet
    tokenizer: PreTrainedTokenizerBase
    encoded: EncodedTasks
    weights: tuple[float, ...]
    sizes: tuple[TaskSize, ...]

    def train_loader(self, placement: Placement, *, rank: int, pin_memory: bool) -> TrainLoader:
        return TrainLoader(
            self.encoded, tasks=self.tasks, config=self.config.data, placement=placement, rank=rank,
            seed=self.config.run.seed, pin_memory=pin_memory,
        )  # fmt: skip

    def pool_loader(self, placement: Placement, *, rank: int, pin_memory: bool) -> PoolLoader:
        return PoolLoader(
            self.encoded, tasks=self.tasks, config=self.config.data, placement=placement, rank=rank,
            seed=self.config.run.seed, pin_memory=pin_memory,
        )  # fmt: skip

    def eval_loader(self, placement: Placement, *, rank: int, pin_memory: bool) -> EvalLoader:
        return EvalLoader(
            self.encoded, tasks=self.tasks, config=self.config.data, placement=placement, rank=rank,
            pin_memory=pin_memory,
        )  # fmt: skip

    def answers(self, split: str, model: nn.Module) -> Answers | None:
        """What generates the answers of the tasks that are scored by text; None if there is no such task."""
        if not any(spec.is_scored_by_text for spec in self.tasks):
            return None
        assert isinstance(model, MultiTaskDecoder)
        splits = self.encoded.split(split)
        return Answers(model, self.tokenizer, self.tasks, splits, max_new_tokens=self.config.run.max_new_tokens)

    def split_sizes(self, split: str) -> tuple[int, ...]:
        """Examples per task. The test of a task without a test split is its validation."""
        return tuple(len(one) for one in self.encoded.split(split))


def encode(sources: Sources, config: RunConfig, *, env: RankEnv, agreement: Agreement) -> RunData:
    """Tokenizes on one rank per node while the others wait, then reads the cache everywhere. Collective.

    Raises:
        DataError: If a split is empty or an example does not fit its task.
    """
    encoded, reports = encode_tasks(
        sources.tasks,
        sources.source,
        sources.tokenizer,
        config.data,
        seed=config.run.seed,
        is_builder=env.local_rank == 0,
        barrier=agreement.barrier,
    )
    weights = tuple(mixture_weights(encoded.train_sizes, config.data.sampling, names=sources.tasks.names))
    return RunData(config, sources.tasks, sources.tokenizer, encoded, weights, task_sizes(sources.tasks, reports))


def task_sizes(tasks: TaskSet, reports: list[SplitReport]) -> tuple[TaskSize, ...]:
    """Sums up the reports of a task's splits."""
    by_split = {(report.task, report.split): report for report in reports}

    def size(name: str) -> TaskSize:
        found = {split: by_split.get((name, split)) for split in ("train", "validation", "test")}
        counts = {split: 0 if report is None else report.num_examples for split, report in found.items()}
        present = [report for report in found.values() if report is not None]
        return TaskSize(
            **counts,
            truncated=sum(report.num_truncated for report in present),
            left_out=sum(report.num_dropped for report in present),
        )

    return tuple(size(name) for name in tasks.names)
