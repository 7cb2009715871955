"""What every source of tasks offers: specs, splits, examples and a fingerprint of their content.

To add a source, subclass :class:`TaskSource` and name it in ``load.py``.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

from distmoe.data.example import TaskExample
from distmoe.tasks import TaskSpec

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
REQUIRED_SPLITS: tuple[Split, ...] = ("train", "validation")


class TaskSource(ABC):
    """Raw tasks by name. Sources are lazy: nothing but specs is read before :meth:`examples`."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Tasks that exist here, in the source's own order."""

    @abstractmethod
    def spec(self, name: str) -> TaskSpec:
        """Returns what is known about a task without its examples.

        Raises:
            DataError: If the task's description is missing or contradicts itself.
        """

    @abstractmethod
    def splits(self, name: str) -> tuple[Split, ...]:
        """Splits that the task has, in the order of ``SPLITS``."""

    @abstractmethod
    def examples(self, name: str, split: Split) -> list[TaskExample]:
        """Reads and checks one split; equal calls return equal lists.

        Raises:
            DataError: If the split is empty, or an example does not fit the task's spec.
        """

    def filler_words(self, name: str) -> tuple[str, ...] | None:
        """Words that mean nothing for the task, if the source knows them, else None."""
        return None

    def indexed_sets(self, name: str, split: Split) -> Mapping[str, float] | None:
        """Paths of the indexed sets that hold the split instead of texts, with their weights in the blend."""
        return None

    def fingerprint(self, name: str, split: Split) -> str:
        """Hash of everything that shapes :meth:`examples`; sources override it where reading all is not needed."""
        digest = hashlib.sha256()
        for example in self.examples(name, split):
            digest.update(repr((*example.texts, example.references, example.label)).encode())
        return digest.hexdigest()

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """All words of the source's texts if they are few and known beforehand, else None."""
        return None
