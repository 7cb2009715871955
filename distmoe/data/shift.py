"""Shifted copies of test texts: how scores hold when texts are noisier, shorter or longer than those trained on.

============  ==========================================================================================
shift         what becomes of a text of n words (words are what white space separates)
============  ==========================================================================================
noise_p       each word is replaced with probability p by one drawn from the task's test texts
drop_p        each word is left out with probability p; one stays
longer_f      filler words are put between the others until there are f n words
============  ==========================================================================================

Labels and answers stay. Nothing depends on labels: a word is drawn as often as it occurs in all texts of the task's
split. Every example has a random stream of its own, so neither ranks nor order matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from distmoe.data.example import TaskExample
from distmoe.seed import numpy_generator

ShiftKind = Literal["noise", "drop", "longer"]
# Raise it with any change of what a shift does to a text: caches and comparisons depend on it.
SHIFT_VERSION = 1
# Where a source knows no words without meaning: the commonest ones, up to this share of all words of the texts.
_FILLER_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Shift:
    """One way to change texts.

    Attributes:
        kind: What is done to words.
        strength: Share of the words (``noise``, ``drop``), or factor of their number (``longer``).
    """

    kind: ShiftKind
    strength: float

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.strength:g}"

    @property
    def split(self) -> str:
        """Name of the test split under the shift."""
        return f"test~{self.name}"


def shift_examples(
    examples: Sequence[TaskExample], shift: Shift, *, seed: int, task: str, fillers: Sequence[str] | None = None
) -> list[TaskExample]:
    """Returns copies with shifted texts, both of a pair, in the same order.

    Args:
        examples: All of a split: they are where words are drawn from.
        shift: What to do.
        seed: Of the run.
        task: Its name; with seed, shift and an example's index it names the example's random stream.
        fillers: Words without meaning for ``longer``; None: the commonest words of the texts.
    """
    pool = [word for example in examples for text in _texts(example) for word in text.split()]
    if shift.kind == "longer":
        pool = _common(pool) if fillers is None else list(fillers)
    rewrite = _Rewriter(shift, pool)
    shifted = []
    for index, example in enumerate(examples):
        rng = numpy_generator(seed, "shift", SHIFT_VERSION, task, index, shift.kind, shift.strength)
        # The first text is drawn first: a named order, because both draw from one stream.
        text = rewrite(example.text, rng)
        pair = None if example.text_pair is None else rewrite(example.text_pair, rng)
        shifted.append(replace(example, text=text, text_pair=pair))
    return shifted


@dataclass(frozen=True)
class _Rewriter:
    """Rewrites one text; ``pool`` is where new words are drawn from, by occurrence."""

    shift: Shift
    pool: Sequence[str]

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        words = text.split()
        if not words:
            return text
        change = {"noise": self._noise, "drop": self._drop, "longer": self._longer}[self.shift.kind]
        return " ".join(change(words, rng))

    def _noise(self, words: list[str], rng: np.random.Generator) -> list[str]:
        is_hit = rng.random(len(words)) < self.shift.strength
        return [
            draw if hit else word for word, hit, draw in zip(words, is_hit, self._draw(len(words), rng), strict=True)
        ]

    def _drop(self, words: list[str], rng: np.random.Generator) -> list[str]:
        stays = rng.random(len(words)) >= self.shift.strength
        stays[rng.integers(len(words))] |= not stays.any()
        return [word for word, one in zip(words, stays, strict=True) if one]

    def _longer(self, words: list[str], rng: np.random.Generator) -> list[str]:
        """Old words keep their order; every arrangement of new ones among them is equally likely."""
        total = round(self.shift.strength * len(words))
        is_new = np.zeros(total, dtype=bool)
        is_new[rng.permutation(total)[: total - len(words)]] = True
        new, old = iter(self._draw(total - len(words), rng)), iter(words)
        return [next(new) if one else next(old) for one in is_new]

    def _draw(self, count: int, rng: np.random.Generator) -> list[str]:
        return [self.pool[place] for place in rng.integers(len(self.pool), size=count)]


def _texts(example: TaskExample) -> Iterator[str]:
    """The texts that are shifted: what is given, never an answer."""
    yield example.text
    if example.text_pair is not None:
        yield example.text_pair


def _common(pool: Sequence[str]) -> list[str]:
    """The commonest words that together make up half of the pool, as often as they occur in it; at least one word."""
    counts = sorted(Counter(pool).items(), key=lambda item: (-item[1], item[0]))
    before = np.cumsum([0, *(count for _, count in counts)])[:-1]
    kept = {word for (word, _), seen in zip(counts, before, strict=True) if seen < _FILLER_SHARE * len(pool)}
    return [word for word in pool if word in kept]
