"""The probe set: the few sequences on which layers of different tasks are compared.

It is drawn once, from all tasks alike, and stays fixed for the run. Membership is decided by a hash of seed, task and
example number, never by the order of a folder or by ranks, so every process finds the same set without talking.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distmoe.errors import ConfigError, DataError
from distmoe.seed import derive
from distmoe.structure.cka import MIN_EXAMPLES


@dataclass(frozen=True)
class Probe:
    """The chosen examples.

    Attributes:
        sizes: Examples that each task had to choose from.
        seed: Seed of the choice.
        ids: (task, example) pairs in ascending order.
    """

    sizes: tuple[int, ...]
    seed: int
    ids: tuple[tuple[int, int], ...]

    def to_json(self) -> dict[str, object]:
        return {"sizes": list(self.sizes), "seed": self.seed, "ids": [list(pair) for pair in self.ids]}

    @property
    def sha256(self) -> str:
        """Goes into the run's record; another probe set after a resume is recognised by it."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def select_probe(sizes: Sequence[int], *, num_examples: int, seed: int) -> Probe:
    """Chooses ``num_examples`` examples, as equally many of each task as there are.

    Args:
        sizes: Examples of each task.
        num_examples: Size of the probe set. 1024 is usual; the error of a similarity falls like 1/sqrt(n).
        seed: Seed of the run.

    Raises:
        ConfigError: If the probe set is too small for an unbiased similarity.
        DataError: If there are fewer examples than asked for.
    """
    if num_examples < MIN_EXAMPLES:
        raise ConfigError(
            "the probe set is too small for an unbiased similarity",
            got=num_examples,
            expected=f"at least {MIN_EXAMPLES}; 1024 is usual",
            remedy="raise the number of probe examples",
        )
    if num_examples > sum(sizes):
        raise DataError(
            "the probe set is larger than the data",
            got=f"{num_examples} probe examples",
            expected=f"at most {sum(sizes)}: all examples of {len(sizes)} tasks",
            remedy="lower the number of probe examples, or add data",
        )
    ids = tuple(
        (task, int(example))
        for task, (size, quota) in enumerate(zip(sizes, _quotas(sizes, num_examples), strict=True))
        for example in np.sort(np.argsort(_hashes(size, derive(seed, "probe", task)), kind="stable")[:quota])
    )
    return Probe(tuple(sizes), seed, ids)


def _quotas(sizes: Sequence[int], num_examples: int) -> list[int]:
    """Equal shares; what a small task cannot give is shared by the others, the remainder goes to the lowest ids."""
    quotas = [0] * len(sizes)
    left = num_examples
    while left:
        open_tasks = [task for task, size in enumerate(sizes) if quotas[task] < size]
        share = left // len(open_tasks)
        # The remainder waits until nothing else is left: dealt earlier, it would favour the same tasks every round.
        for task in open_tasks if share else open_tasks[:left]:
            given = min(max(share, 1), sizes[task] - quotas[task])
            quotas[task] += given
            left -= given
    return quotas


def _hashes(count: int, key: int) -> np.ndarray:
    """A 64-bit hash of 0..count-1 under ``key``: the finaliser of splitmix64 (Steele et al. 2014).

    Library generators may change their streams between versions; this is arithmetic.
    """
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
