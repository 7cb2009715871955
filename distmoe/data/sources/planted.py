"""What the embedded suite plants: a lexicon of made-up words, hidden attributes of texts, and functions of them.

A text says something about M *attributes*, each with one of two values (``x_i`` = -1 or +1), and every value has its
own synonyms. A *reading* pairs the attributes: in a pair (a, b), attribute b weakens or lets through what a says::

    feature(a, b) = x_a * (ATTENUATION + (1 - ATTENUATION) * x_b)

Tasks of one planted task group share one reading and differ in the weights of its features; different task groups
pair the same attributes differently. So all tasks share the words, tasks of a group share non-linear features, and
task groups compete for the same feed-forward units on the same texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Signs = npt.NDArray[np.int8]

SYNONYMS = 4
MIN_ATTRIBUTES = 6
# Linear share of a feature. At 0 a feature is a pure product, which gradient descent hardly finds within a few
# hundred steps; at 1 all task groups want the same linear features and grouping them brings nothing.
ATTENUATION = 0.55
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "fl", "gr", "kl", "st")
_VOWELS = ("a", "e", "i", "o", "u")


def made_up_words(count: int, rng: np.random.Generator) -> list[str]:
    """Returns ``count`` different pronounceable words of two syllables."""
    syllables = [onset + vowel for onset in _ONSETS for vowel in _VOWELS]
    chosen = rng.choice(len(syllables) ** 2, size=count, replace=False)
    return [syllables[i // len(syllables)] + syllables[i % len(syllables)] for i in map(int, chosen)]


@dataclass(frozen=True)
class Lexicon:
    """Which word says what.

    Attributes:
        attribute_words: ``[M][2][SYNONYMS]`` words for value -1 and +1 of each attribute.
        fillers: Words that mean nothing.
    """

    attribute_words: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    fillers: tuple[str, ...]

    @classmethod
    def draw(cls, num_attributes: int, rng: np.random.Generator) -> Lexicon:
        meaningful = num_attributes * 2 * SYNONYMS
        words = made_up_words(meaningful + meaningful // 2, rng)
        return cls._arrange(words[:meaningful], words[meaningful:], num_attributes)

    @classmethod
    def _arrange(cls, words: list[str], fillers: list[str], num_attributes: int) -> Lexicon:
        table = np.asarray(words, dtype=object).reshape(num_attributes, 2, SYNONYMS)
        return cls(tuple((tuple(low), tuple(high)) for low, high in table), tuple(fillers))

    def reshuffled(self, rng: np.random.Generator) -> Lexicon:
        """The same words with other meanings: the private dictionary of an unrelated task."""
        words = [word for values in self.attribute_words for synonyms in values for word in synonyms]
        return self._arrange(
            [words[i] for i in rng.permutation(len(words))], list(self.fillers), len(self.attribute_words)
        )

    @property
    def words(self) -> tuple[str, ...]:
        meaningful = (word for values in self.attribute_words for synonyms in values for word in synonyms)
        return (*meaningful, *self.fillers)


def num_attributes(num_task_groups: int) -> int:
    """Enough attributes (an even number M) for every task group to have a pairing without a common pair: M - 1."""
    return max(MIN_ATTRIBUTES, num_task_groups + 1 + (num_task_groups + 1) % 2)


def disjoint_pairings(num_attributes: int, rng: np.random.Generator) -> list[list[tuple[int, int]]]:
    """The M - 1 rounds of a round-robin tournament: perfect matchings of M attributes, no pair twice.

    Args:
        num_attributes: M, even.
        rng: Names the attributes, orders the rounds and the two members of each pair.
    """
    names, last = rng.permutation(num_attributes), num_attributes - 1
    rounds = []
    for shift in rng.permutation(last):
        circle = [last, *(int(i) for i in (np.arange(last) + shift) % last)]
        pairs = [(circle[i], circle[-1 - i]) for i in range(num_attributes // 2)]
        rounds.append(
            [(int(names[a]), int(names[b])) if rng.random() < 0.5 else (int(names[b]), int(names[a])) for a, b in pairs]
        )
    return rounds


@dataclass(frozen=True)
class PlantedFunction:
    """A task's target: a weighted sum of the features of one reading, cut into classes or standardised.

    Attributes:
        pairs: The reading: (attribute, attribute that weakens it).
        weights: One weight per pair.
        num_classes: 0 for a regression target of mean 0 and variance 1.
    """

    pairs: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    num_classes: int

    def score(self, x_NM: Signs) -> Floats:
        """Weighted sum of features, ``[N]``."""
        told = np.stack([x_NM[:, a] * (ATTENUATION + (1 - ATTENUATION) * x_NM[:, b]) for a, b in self.pairs], axis=1)
        return told @ np.asarray(self.weights)

    def thresholds(self) -> tuple[Floats, float]:
        """Class borders and standard deviation of the score over all texts, from all 2**M attribute values.

        A pair's feature is odd in its first attribute, so the score is symmetric around 0.
        """
        used = sorted({i for pair in self.pairs for i in pair})
        every = np.zeros((2 ** len(used), max(used) + 1), dtype=np.int8)
        every[:, used] = np.array(list(product((-1, 1), repeat=len(used))), dtype=np.int8)
        scores = self.score(every)
        borders = (
            np.quantile(scores, np.arange(1, self.num_classes) / self.num_classes) if self.num_classes else np.zeros(0)
        )
        return borders, float(scores.std())

    def labels(self, x_NM: Signs) -> list[int] | list[float]:
        borders, deviation = self.thresholds()
        scores = self.score(x_NM)
        if not self.num_classes:
            return [round(float(value), 4) for value in scores / deviation]
        return [int(value) for value in np.searchsorted(borders, scores)]
