"""An ordered, immutable set of tasks; a task's position is its id everywhere inside distmoe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from distmoe.errors import DataError
from distmoe.tasks.spec import TaskSpec


@dataclass(frozen=True)
class TaskSet:
    """Tasks in a fixed order.

    Raises:
        DataError: If it is empty or a name occurs twice.
    """

    specs: tuple[TaskSpec, ...]

    def __post_init__(self) -> None:
        if not self.specs:
            raise DataError(
                "a run needs at least one task",
                got="none",
                expected="one task or more",
                remedy="set tasks.names, or data.root to a folder with task folders",
            )
        names = self.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(
                "task names must be different",
                got=twice,
                expected="each name once",
                remedy="rename or remove one of them in tasks.names",
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    @property
    def max_outputs(self) -> int:
        """Width of the widest head: the padded width of the stacked head tensor."""
        return max(spec.num_outputs for spec in self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __iter__(self) -> Iterator[TaskSpec]:
        return iter(self.specs)

    def __getitem__(self, task_id: int) -> TaskSpec:
        return self.specs[task_id]

    def id_of(self, name: str) -> int:
        """Returns the id of a task.

        Raises:
            DataError: If there is no such task.
        """
        if name not in self.names:
            raise DataError(
                "no such task in this run",
                got=name,
                expected=" | ".join(self.names),
                remedy="use one of the names above",
            )
        return self.names.index(name)

    def to_json(self) -> list[dict[str, object]]:
        return [asdict(spec) | {"labels": list(spec.labels)} for spec in self.specs]

    @classmethod
    def from_json(cls, rows: list[dict]) -> TaskSet:
        return cls(tuple(TaskSpec(**(row | {"labels": tuple(row["labels"])})) for row in rows))

    @property
    def fingerprint(self) -> str:
        """Hash of everything above; a checkpoint of another task set is recognised by it."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]
