"""Everything between a source of tasks and the loaders: tokenize once, cache, report what was cut.

Ranks: the builder encodes what the cache lacks, then all meet at the barrier, then the others read the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from distmoe.data.cache import SplitCache, cache_key
from distmoe.data.config import DataConfig
from distmoe.data.encoded import EncodedSplit, EncodedTasks
from distmoe.data.preprocess import encode_split
from distmoe.data.sources.base import Split, TaskSource
from distmoe.errors import ConfigError
from distmoe.log import get_logger
from distmoe.tasks import TaskSet
from distmoe.tokenization import fingerprint

_logger = get_logger(__name__)


@dataclass(frozen=True)
class SplitReport:
    """What became of one split.

    Attributes:
        task: Task name.
        split: Split name.
        num_examples: Examples kept.
        num_truncated: Of these, examples longer than ``data.max_length``.
        num_dropped: Examples left out by ``data.max_train_examples``.
    """

    task: str
    split: Split
    num_examples: int
    num_truncated: int
    num_dropped: int


def encode_tasks(
    tasks: TaskSet,
    source: TaskSource,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    is_builder: bool = True,
    barrier: Callable[[], None] = lambda: None,
) -> tuple[EncodedTasks, list[SplitReport]]:
    """Returns all splits of all tasks as token ids, and a report of them.

    Args:
        tasks: Tasks of the run; their order gives the ids.
        source: Holds their examples.
        tokenizer: Turns texts into ids.
        config: Limits and the cache folder.
        is_builder: True on the rank (one per file system) that writes the cache.
        barrier: Meets all ranks; called exactly once by each, also when the builder fails.

    Raises:
        DataError: If a split is empty or an example does not fit its task.
        ConfigError: If the tokenizer cannot pad, or ``data.max_length`` leaves no room for text.
    """
    _check_tokenizer(tokenizer, config)
    build = _Builder(tasks, source, tokenizer, config)
    if is_builder:
        try:
            encoded, reports = build.all()
        finally:
            barrier()
        _log(tasks, encoded, reports)
    else:
        barrier()
        encoded, reports = build.all()
    return encoded, reports


class _Builder:
    def __init__(
        self, tasks: TaskSet, source: TaskSource, tokenizer: PreTrainedTokenizerBase, config: DataConfig
    ) -> None:
        self._tasks, self._source, self._tokenizer, self._config = tasks, source, tokenizer, config
        self._cache = SplitCache(config.cache_dir)
        self._tokenizer_fingerprint = fingerprint(tokenizer)
        self._reports: list[SplitReport] = []

    def all(self) -> tuple[EncodedTasks, list[SplitReport]]:
        ids = range(len(self._tasks))
        encoded = EncodedTasks(
            train=tuple(self._split(task, "train") for task in ids),
            validation=tuple(self._split(task, "validation") for task in ids),
            test=tuple(
                self._split(task, "test") if "test" in self._source.splits(self._tasks[task].name) else None
                for task in ids
            ),
            pad_token_id=int(self._tokenizer.pad_token_id),  # type: ignore[arg-type]
        )
        return encoded, self._reports

    def _split(self, task: int, split: Split) -> EncodedSplit:
        name = self._tasks[task].name
        limit = self._config.max_train_examples if split == "train" else None
        key = cache_key(
            self._tasks,
            task,
            split,
            content=self._source.fingerprint(name, split),
            tokenizer=self._tokenizer_fingerprint,
            max_length=self._config.max_length,
            max_examples=limit,
        )
        encoded = self._cache.load(key)
        if encoded is None:
            examples = self._source.examples(name, split)
            encoded = encode_split(examples[:limit], self._tokenizer, max_length=self._config.max_length)
            encoded = replace(encoded, num_dropped=len(examples) - len(encoded))
            self._cache.save(key, encoded)
        self._reports.append(SplitReport(name, split, len(encoded), encoded.num_truncated, encoded.num_dropped))
        return encoded


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            "the tokenizer has no padding token",
            got="pad_token=null",
            expected="a padding token",
            remedy="set pad_token in its tokenizer_config.json",
        )
    specials = tokenizer.num_special_tokens_to_add(pair=True)
    if config.max_length < specials + 2:
        raise ConfigError(
            "data.max_length leaves no room for two texts",
            got=config.max_length,
            expected=f"at least {specials + 2}: {specials} special tokens and one token of each text",
            remedy="raise data.max_length",
        )


def _log(tasks: TaskSet, encoded: EncodedTasks, reports: list[SplitReport]) -> None:
    for report in reports:
        _logger.debug("%s %s: %d examples", report.task, report.split, report.num_examples)
    dropped = [report for report in reports if report.num_dropped]
    if dropped:
        shown = ", ".join(f"{r.task} {r.split} {r.num_dropped}" for r in dropped)
        _logger.warning("examples left out by data.max_train_examples: %s", shown)
    cut = [report for report in reports if report.num_truncated]
    if cut:
        shown = ", ".join(f"{r.task} {r.split} {r.num_truncated} of {r.num_examples}" for r in cut)
        _logger.warning("texts longer than data.max_length were truncated: %s", shown)
    if encoded.without_test:
        shown = ", ".join(tasks[task].name for task in encoded.without_test)
        _logger.warning("no test split, so validation is reported as test: %s", shown)
