"""The embedded texts: corpora and text-to-text tasks for language models, offline and equal on every machine.

Corpora (``kind: language_modeling``): documents of a planted grammar. Every word is followed by one of four others,
most likely by the first; tasks of a family have one table of followers, families contradict each other on the same
words. So the best perplexity is known (:func:`entropy`), and only who knows the family reaches it from the start::

    {"text": "drabo kiflu sada drabo ..."}

Text-to-text tasks (``kind: generation``), each with another metric::

    reverse     {"text": "drabo kiflu sada", "target": "sada kiflu drabo"}          exact_match
    translate   {"text": "drabo kiflu", "target": "tovu gopa"}                      bleu, a word-for-word dictionary
    shorten     {"text": "drabo kiflu sada tovu", "target": "drabo sada"}           rouge_l, every second word
    add         {"text": "3 plus 4", "target": "3 plus 4 makes 7"}                  exact_match_final_number
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np

from distmoe.data.config import TextSuiteConfig
from distmoe.data.example import TaskExample
from distmoe.data.sources.base import SPLITS, Split, TaskSource
from distmoe.data.sources.planted import made_up_words
from distmoe.errors import DataError
from distmoe.seed import numpy_generator
from distmoe.tasks import MetricName, TaskSpec

# Raise it whenever a change below changes any example: caches and comparisons depend on it.
TEXT_SUITE_VERSION = 1
# How likely a word's followers are, the most likely first.
FOLLOWER_SHARES = (0.55, 0.25, 0.15, 0.05)
_LARGEST_TERM = 20
_NUM_WORDS = 48

_METRICS: dict[str, MetricName] = {
    "reverse": "exact_match",
    "translate": "bleu",
    "shorten": "rouge_l",
    "add": "exact_match_final_number",
}


def entropy() -> float:
    """Nats per word of a corpus: what the loss of a perfect model of the grammar tends to inside a document."""
    return -sum(share * math.log(share) for share in FOLLOWER_SHARES)


class TextSuiteSource(TaskSource):
    """Generates corpora or text-to-text tasks; two sources with equal configuration give equal tasks."""

    def __init__(self, config: TextSuiteConfig) -> None:
        self._config = config
        self._words = made_up_words(_NUM_WORDS, self._rng("words"))
        if config.kind == "generation":
            self._families = dict.fromkeys(_METRICS, "text_to_text")
        else:
            self._families = {
                f"prose{family}_{chr(ord('a') + index)}": f"prose{family}"
                for family in range(config.num_families)
                for index in range(config.corpora_per_family)
            }

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._families)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        numbers = [str(number) for number in range(2 * _LARGEST_TERM + 1)]
        return (*self._words, *numbers, "plus", "makes")

    def spec(self, name: str) -> TaskSpec:
        self._check(name)
        metric = _METRICS[name] if self._config.kind == "generation" else "inverse_perplexity"
        return TaskSpec(name=name, kind=self._config.kind, metric=metric, family=self._families[name])

    def splits(self, name: str) -> tuple[Split, ...]:
        return SPLITS

    def examples(self, name: str, split: Split) -> list[TaskExample]:
        self._check(name)
        count = self._config.train_examples if split == "train" else self._config.eval_examples
        rng = self._rng("texts", name, split)
        if self._config.kind == "generation":
            write: Callable[[np.random.Generator], TaskExample] = self._writer(name)
        else:
            followers = self._followers(self._families[name])

            def write(rng: np.random.Generator) -> TaskExample:
                return TaskExample(self._document(followers, rng), None, 0)

        return [write(rng) for _ in range(count)]

    def fingerprint(self, name: str, split: Split) -> str:
        text = f"text suite {TEXT_SUITE_VERSION} {name} {split} {self._config.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _check(self, name: str) -> None:
        if name not in self._families:
            raise DataError(
                "no such task among the embedded texts",
                got=name,
                expected=" | ".join(self._families),
                remedy="correct tasks.names, or change tasks.text_suite",
            )

    def _rng(self, *keys: object) -> np.random.Generator:
        return numpy_generator(self._config.generator_seed, "text suite", TEXT_SUITE_VERSION, *keys)

    def _followers(self, family: str) -> np.ndarray:
        """``[words, 4]``: which words may follow each word. Every word follows four others, so all are as frequent."""
        rng = self._rng("followers", family)
        circle = rng.permutation(len(self._words))
        shifts = rng.choice(np.arange(1, len(self._words)), size=len(FOLLOWER_SHARES), replace=False)
        followers = np.empty((len(circle), len(shifts)), dtype=np.int64)
        followers[circle] = np.stack([np.roll(circle, -shift) for shift in shifts], axis=1)
        return followers

    def _document(self, followers: np.ndarray, rng: np.random.Generator) -> str:
        length = int(rng.integers(self._config.document_words // 2, self._config.document_words + 1))
        places = [int(rng.integers(len(self._words)))]
        for choice in rng.choice(len(FOLLOWER_SHARES), size=length - 1, p=FOLLOWER_SHARES).tolist():
            places.append(int(followers[places[-1], choice]))
        return " ".join(self._words[place] for place in places)

    def _writer(self, name: str) -> Callable[[np.random.Generator], TaskExample]:
        dictionary = dict(zip(self._words, self._rng("dictionary").permutation(np.array(self._words)), strict=True))

        def write(rng: np.random.Generator) -> TaskExample:
            if name == "add":
                a, b = rng.integers(_LARGEST_TERM + 1, size=2).tolist()
                return _pair(f"{a} plus {b}", f"{a} plus {b} makes {a + b}")
            words = [str(word) for word in rng.choice(self._words, size=rng.integers(3, 7))]
            targets = {
                "reverse": words[::-1],
                "translate": [str(dictionary[word]) for word in words],
                "shorten": words[::2],
            }
            return _pair(" ".join(words), " ".join(targets[name]))

        return write


def _pair(text: str, target: str) -> TaskExample:
    return TaskExample(text, None, 0, target, (target,))
