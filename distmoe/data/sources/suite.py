"""The embedded suite: deterministic text tasks with planted task groups, for demos, tests and experiments offline.

An example of the first task of family ``planted0`` (16 words, of which 12 say something and 4 are filler)::

    {"text": "drabo kiflu sada ...", "label": 2}

Each planted task group (``TaskSpec.family``) has ``tasks_per_group`` tasks; its last one is low-resource. Unrelated
tasks read the same words by a private dictionary. With ``signs: family`` the tasks of a group also agree in which way
each feature points, as sentiment of reviews and of tweets does: what one task's examples teach holds for the others.
With ``signs: task`` they share only what the features are. What is planted, and why grouping helps: ``planted.py``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from distmoe.data.config import SuiteConfig
from distmoe.data.example import TaskExample
from distmoe.data.sources.base import SPLITS, Split, TaskSource
from distmoe.data.sources.planted import Lexicon, PlantedFunction, disjoint_pairings, num_attributes
from distmoe.errors import DataError
from distmoe.seed import numpy_generator
from distmoe.tasks import TaskKind, TaskSpec

# Raise it whenever a change below or in planted.py changes any example: caches and comparisons depend on it.
SUITE_VERSION = 1
# Every attribute is said twice by words drawn on their own, so that an encoder meets each word in several contexts.
MENTIONS = 2
NUM_FILLERS = 4


@dataclass(frozen=True)
class _SuiteTask:
    spec: TaskSpec
    function: PlantedFunction
    lexicon: Lexicon
    train_examples: int


class SuiteSource(TaskSource):
    """Generates the suite; two sources with equal configuration give equal tasks on every machine."""

    def __init__(self, config: SuiteConfig) -> None:
        self._config = config
        self._num_attributes = num_attributes(config.num_task_groups)
        self._lexicon = Lexicon.draw(self._num_attributes, self._rng("lexicon"))
        tasks = [*self._related(), *self._unrelated()]
        self._tasks = {task.spec.name: task for task in tasks}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return self._lexicon.words

    def spec(self, name: str) -> TaskSpec:
        return self._task(name).spec

    def splits(self, name: str) -> tuple[Split, ...]:
        return SPLITS

    def examples(self, name: str, split: Split) -> list[TaskExample]:
        task = self._task(name)
        count = task.train_examples if split == "train" else self._config.eval_examples
        rng = self._rng("texts", name, split)
        x_NM = rng.choice(np.array([-1, 1], dtype=np.int8), size=(count, self._num_attributes))
        labels = task.function.labels(x_NM)
        return [self._write(task, x_M, label, rng) for x_M, label in zip(x_NM, labels, strict=True)]

    def filler_words(self, name: str) -> tuple[str, ...]:
        return self._task(name).lexicon.fillers

    def fingerprint(self, name: str, split: Split) -> str:
        text = f"suite {SUITE_VERSION} {name} {split} {self._config.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _task(self, name: str) -> _SuiteTask:
        if name not in self._tasks:
            raise DataError(
                "no such task in the embedded suite",
                got=name,
                expected=" | ".join(self._tasks),
                remedy="correct tasks.names, or raise the counts in tasks.suite",
            )
        return self._tasks[name]

    def _rng(self, *keys: object) -> np.random.Generator:
        return numpy_generator(self._config.generator_seed, "suite", SUITE_VERSION, *keys)

    def _related(self) -> list[_SuiteTask]:
        config, tasks = self._config, []
        readings = disjoint_pairings(self._num_attributes, self._rng("readings"))
        for family in range(config.num_task_groups):
            for index in range(config.tasks_per_group):
                low = config.tasks_per_group > 1 and index == config.tasks_per_group - 1
                kind, num_classes = _kind(family, index, low=low)
                name = f"planted{family}_{'low' if low else chr(ord('a') + index % 26) + str(index // 26 or '')}"
                spec = _spec(name, f"planted{family}", kind, num_classes)
                function = _function(
                    readings[family], num_classes, self._rng("weights", name), signs=self._signs(family)
                )
                train = config.low_resource_examples if low else config.train_examples
                tasks.append(_SuiteTask(spec, function, self._lexicon, train))
        return tasks

    def _signs(self, family: int) -> np.ndarray | None:
        """Signs of the weights that the family's tasks have in common; None: every task draws its own."""
        if self._config.signs == "task":
            return None
        return self._rng("signs", family).choice([-1.0, 1.0], size=self._num_attributes // 2)

    def _unrelated(self) -> list[_SuiteTask]:
        tasks = []
        for index in range(self._config.num_unrelated):
            name = f"unrelated{index}"
            rng = self._rng("unrelated", index)
            lexicon = self._lexicon.reshuffled(rng)
            function = _function(disjoint_pairings(self._num_attributes, rng)[0], 2, rng)
            spec = _spec(name, name, "classification", 2)
            tasks.append(_SuiteTask(spec, function, lexicon, self._config.train_examples))
        return tasks

    def _write(self, task: _SuiteTask, x_M: np.ndarray, label: float, rng: np.random.Generator) -> TaskExample:
        """Says every attribute ``MENTIONS`` times, shuffled; a pair task says the weakening ones in text_pair."""
        second = {b for _, b in task.function.pairs} if task.spec.pair else set()
        words: tuple[list[str], list[str]] = ([], [])
        for attribute, value in enumerate(x_M):
            synonyms = task.lexicon.attribute_words[attribute][int(value > 0)]
            words[attribute in second].extend(synonyms[i] for i in rng.integers(len(synonyms), size=MENTIONS))
        for position, filler in enumerate(rng.integers(len(task.lexicon.fillers), size=NUM_FILLERS)):
            words[position % 2 if task.spec.pair else 0].append(task.lexicon.fillers[filler])
        text, text_pair = (" ".join(part[i] for i in rng.permutation(len(part))) for part in words)
        return TaskExample(text, text_pair if task.spec.pair else None, label)


def _kind(family: int, index: int, *, low: bool) -> tuple[TaskKind, int]:
    """Kind and number of classes of a task: mostly classes, with a pair task and a regression among them."""
    if low:
        return "classification", 2
    if index == 0 and family % 3 == 2:
        return "pair_classification", 2
    if index == 1 and family % 3 == 1:
        return "regression", 0
    return "classification", 3 if index == 0 else 2


def _spec(name: str, family: str, kind: TaskKind, num_classes: int) -> TaskSpec:
    return TaskSpec(
        name=name,
        kind=kind,
        metric="accuracy" if num_classes else "pearson",
        labels=tuple(f"class{i}" for i in range(num_classes)),
        family=family,
        description=f"How a text is judged by the rules of {family}.",
    )


def _function(
    pairs: list[tuple[int, int]], num_classes: int, rng: np.random.Generator, *, signs: np.ndarray | None = None
) -> PlantedFunction:
    """Weights stay away from zero, so that every task of a group uses every feature of its reading."""
    own, strengths = rng.choice([-1.0, 1.0], size=len(pairs)), rng.uniform(0.5, 1.5, size=len(pairs))
    weights = (own if signs is None else signs) * strengths
    return PlantedFunction(tuple(pairs), tuple(float(weight) for weight in weights), num_classes)
