"""Everything between a source of tasks and the loaders: tokenize once, cache, report what was cut.

Documents of a language modelling task are cached as an indexed set, and read as windows like any other indexed set.

Ranks: the builder encodes what the cache lacks, then all meet at the barrier, then the others read the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from distmoe.data.cache import SplitCache, cache_key
from distmoe.data.config import DataConfig
from distmoe.data.encoded import AnySplit, EncodedSplit, EncodedTasks
from distmoe.data.indexed.documents import build_set
from distmoe.data.indexed.sets import check_set, open_windows, read_pairs
from distmoe.data.indexed.tokens import check_prompt
from distmoe.data.indexed.windows import WindowSplit
from distmoe.data.preprocess import encode_pairs, encode_split, join_pairs
from distmoe.data.shift import SHIFT_VERSION, Shift, shift_examples
from distmoe.data.shifted import check_growth, check_shiftable
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
        split: Split name; with a shift, for example ``test~noise_0.1``.
        num_examples: Examples kept.
        num_truncated: Of these, examples longer than ``data.max_length``.
        num_dropped: Examples left out by ``data.max_train_examples``.
        num_tokens_left_out: Tokens at the end of a corpus that fill no window.
    """

    task: str
    split: str
    num_examples: int
    num_truncated: int
    num_dropped: int
    num_tokens_left_out: int = 0


def encode_tasks(
    tasks: TaskSet,
    source: TaskSource,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    seed: int = 0,
    is_builder: bool = True,
    barrier: Callable[[], None] = lambda: None,
) -> tuple[EncodedTasks, list[SplitReport]]:
    """Returns all splits of all tasks as token ids, and a report of them.

    Args:
        tasks: Tasks of the run; their order gives the ids.
        source: Holds their examples.
        tokenizer: Turns texts into ids.
        config: Limits, shifts and the cache folder.
        seed: The run's seed; orders the documents of a language modelling task, and shifts texts.
        is_builder: True on the rank (one per file system) that writes the cache.
        barrier: Meets all ranks; called exactly once by each, also when the builder fails.

    Raises:
        DataError: If a split is empty or an example does not fit its task.
        ConfigError: If the tokenizer cannot pad, ``data.max_length`` leaves no room for text, or a shift does not fit.
    """
    _check_tokenizer(tokenizer, tasks, config)
    if config.shifts.all:
        check_shiftable(tasks, source)
    build = _Builder(tasks, source, tokenizer, config, seed)
    if is_builder:
        try:
            encoded, reports = build.all()
        finally:
            barrier()
        _log(tasks, encoded, reports)
    else:
        barrier()
        encoded, reports = build.all()
    check_growth(tasks, encoded, config.shifts.all, max_length=config.max_length)
    return encoded, reports


class _Builder:
    def __init__(
        self, tasks: TaskSet, source: TaskSource, tokenizer: PreTrainedTokenizerBase, config: DataConfig, seed: int
    ) -> None:
        self._tasks, self._source, self._tokenizer, self._config = tasks, source, tokenizer, config
        self._seed = seed
        self._cache = SplitCache(config.cache_dir)
        self._tokenizer_fingerprint = fingerprint(tokenizer)
        self._reports: list[SplitReport] = []

    def all(self) -> tuple[EncodedTasks, list[SplitReport]]:
        ids = range(len(self._tasks))
        encoded = EncodedTasks(
            train=tuple(self._split(task, "train") for task in ids),
            validation=tuple(self._split(task, "validation") for task in ids),
            test=tuple(self._split(task, "test") if self._has_test(task) else None for task in ids),
            pad_token_id=int(self._tokenizer.pad_token_id),  # type: ignore[arg-type]
            shifted={
                shift.split: tuple(
                    self._split(task, "test" if self._has_test(task) else "validation", shift) for task in ids
                )
                for shift in self._config.shifts.all
            },
        )
        return encoded, self._reports

    def _has_test(self, task: int) -> bool:
        return "test" in self._source.splits(self._tasks[task].name)

    def _split(self, task: int, split: Split, shift: Shift | None = None) -> AnySplit:
        spec = self._tasks[task]
        if spec.kind == "language_modeling":
            windows = self._windows(task, split)
            encoded: AnySplit = windows
            left_out = windows.num_tokens_left_out
        else:
            encoded, left_out = self._encoded(task, split, shift), 0
        dropped = encoded.num_dropped
        name = split if shift is None else shift.split
        self._reports.append(SplitReport(spec.name, name, len(encoded), encoded.num_truncated, dropped, left_out))
        return encoded

    def _encoded(self, task: int, split: Split, shift: Shift | None) -> EncodedSplit:
        key = self._key(task, split, shift)
        encoded = self._cache.load(key)
        if encoded is None:
            encoded = self._encode(task, split, shift)
            self._cache.save(key, encoded)
        else:
            self._check_sets(task, split)
        return encoded

    def _check_sets(self, task: int, split: Split) -> None:
        """What reading them would refuse: the cache knows the tokens of sets, not their descriptions."""
        name = self._tasks[task].name
        for path in self._source.indexed_sets(name, split) or {}:
            check_set(path, self._tokenizer, prompt=self._config.prompt, where=f"task {name!r}, {split}")

    def _encode(self, task: int, split: Split, shift: Shift | None) -> EncodedSplit:
        spec, limit, max_length = self._tasks[task], self._limit(split), self._config.max_length
        where, prompt = f"task {spec.name!r}, {split}", self._config.prompt
        sets = self._source.indexed_sets(spec.name, split)
        if sets is not None:
            pairs = read_pairs(sets, self._tokenizer, prompt=prompt, where=where)
            references = [(str(self._tokenizer.decode(target[:-1])),) for _, target in pairs[:limit]]
            encoded, total = join_pairs(pairs[:limit], references, max_length=max_length), len(pairs)
        else:
            examples = self._source.examples(spec.name, split)
            if shift is not None:
                fillers = self._source.filler_words(spec.name)
                examples = shift_examples(examples, shift, seed=self._seed, task=spec.name, fillers=fillers)
            kept, total = examples[:limit], len(examples)
            if spec.kind == "generation":
                encoded = encode_pairs(kept, self._tokenizer, max_length=max_length, prompt=prompt, where=where)
            else:
                encoded = encode_split(kept, self._tokenizer, max_length=max_length)
        return replace(encoded, num_dropped=total - len(encoded))

    def _windows(self, task: int, split: Split) -> WindowSplit:
        name = self._tasks[task].name
        sets = self._source.indexed_sets(name, split)
        if sets is None:
            path = self._cache.set_path(self._key(task, split))
            texts = partial(self._source.examples, name, split)
            build_set(path, lambda: [(one.text,) for one in texts()], self._tokenizer)
            sets = {str(path): 0.0}
        return open_windows(
            sets,
            self._tokenizer,
            length=self._config.max_length,
            seed=self._seed,
            limit=self._limit(split),
            keep_last=split != "train",
            where=f"task {name!r}, {split}",
        )

    def _key(self, task: int, split: Split, shift: Shift | None = None) -> str:
        spec = self._tasks[task]
        is_text = spec.kind == "language_modeling"  # documents are cached whole, before they are cut into windows
        content = self._source.fingerprint(spec.name, split)
        return cache_key(
            self._tasks,
            task,
            split if shift is None else shift.split,
            content=content if shift is None else f"{content} shift {SHIFT_VERSION} seed {self._seed}",
            tokenizer=self._tokenizer_fingerprint,
            max_length=0 if is_text else self._config.max_length,
            max_examples=None if is_text else self._limit(split),
            prompt=self._config.prompt if spec.kind == "generation" else None,
        )

    def _limit(self, split: Split) -> int | None:
        return self._config.max_train_examples if split == "train" else None


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, tasks: TaskSet, config: DataConfig) -> None:
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            "the tokenizer has no padding token",
            got="pad_token=null",
            expected="a padding token",
            remedy="set pad_token in its tokenizer_config.json",
        )
    specials = tokenizer.num_special_tokens_to_add(pair=True)
    pair = next((spec.name for spec in tasks if spec.pair), None)
    if pair is not None and not specials:
        raise ConfigError(
            "the tokenizer puts nothing between the two texts of a pair task",
            got=f"a tokenizer without special tokens for task {pair!r}",
            expected="a tokenizer with a separator, such as BERT's",
            remedy=f"set data.tokenizer to one, or leave {pair!r} out of tasks.names",
        )
    check_prompt(config.prompt, key="data.prompt")
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
    short = [report for report in reports if report.num_tokens_left_out]
    if short:
        shown = ", ".join(f"{r.task} {r.split} {r.num_tokens_left_out}" for r in short)
        _logger.info("tokens at the end of a corpus that fill no window of data.max_length: %s", shown)
    cut = [report for report in reports if report.num_truncated]
    if cut:
        shown = ", ".join(f"{r.task} {r.split} {r.num_truncated} of {r.num_examples}" for r in cut)
        _logger.warning("texts longer than data.max_length were truncated: %s", shown)
    if encoded.without_test:
        shown = ", ".join(tasks[task].name for task in encoded.without_test)
        _logger.warning("no test split, so validation is reported as test: %s", shown)
