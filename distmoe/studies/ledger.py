"""The runs that have ended, one JSON line each: what a study that was interrupted does not train again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distmoe.errors import ConfigError
from distmoe.studies.jobs import Job

Record = dict[str, Any]


@dataclass(frozen=True)
class Given:
    """What all arms of a study have in common; arms that were given different things cannot be compared.

    Attributes:
        recipe: Of every arm that names none.
        overrides: Of the command line, sorted; of two with one key the later.
    """

    recipe: str
    overrides: tuple[str, ...] = ()

    def beyond(self, other: Given) -> str:
        """What the other one was not given."""
        recipe = [] if self.recipe == other.recipe else [f"--recipe {self.recipe}"]
        return " ".join([*recipe, *(one for one in self.overrides if one not in other.overrides)]) or "fewer settings"

    def to_json(self) -> dict[str, Any]:
        return {"recipe": self.recipe, "overrides": list(self.overrides)}

    @classmethod
    def of(cls, recipe: str, overrides: Sequence[str]) -> Given:
        return cls(recipe, tuple(sorted({one.partition("=")[0]: one for one in overrides}.values())))


class Ledger:
    """``runs.jsonl`` of a study's folder.

    Args:
        path: The file; it need not exist.
        given: To the runs that will be added; None: there will be none.

    Raises:
        ConfigError: If the file is damaged elsewhere than in its last line, or its runs were given something else.
    """

    def __init__(self, path: Path, given: Given | None = None) -> None:
        self._path, self._given = path, given
        self.records: dict[tuple[str, int], Record] = {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                if number == len(lines):  # a machine that went down while it was written: the run is there still
                    path.write_text("".join(lines[:-1]), encoding="utf-8")
                    break
                raise ConfigError(
                    f"{path} is damaged",
                    got=f"line {number}: {line[:60]!r}",
                    expected="one JSON object per line",
                    remedy="remove the line; its run is read again from the run's folder",
                ) from None
            self.records[record["arm"], record["seed"]] = record
        if given is not None:
            self._refuse_others(given)

    def _refuse_others(self, given: Given) -> None:
        for (arm, seed), record in self.records.items():
            if "given" not in record:  # of a version that did not write it
                continue
            other = Given.of(**record["given"])
            if other != given:
                raise ConfigError(
                    f"{self._path} holds runs that were given other settings: its arms could not be compared",
                    got=given.beyond(other),
                    expected=f"{other.beyond(given)} (as arm {arm}, seed {seed})",
                    remedy="choose another --out, or repeat the settings of the runs that are there",
                )

    def find(self, job: Job) -> Record | None:
        """Returns what a job's runs gave, if they have ended.

        Raises:
            ConfigError: If the same arm and seed were trained with other settings.
        """
        record = self.records.get((job.arm, job.seed))
        if record is None:
            return None
        if record["recipe"] != job.recipe or record["runs"] != _plain(job.runs):
            old, new = _flat(record["recipe"], record["runs"]), _flat(job.recipe, job.runs)
            raise ConfigError(
                f"arm {job.arm}, seed {job.seed} has been trained with other settings",
                got=" ".join(sorted(new - old)) or "fewer settings",
                expected=" ".join(sorted(old - new)) or "fewer settings",
                remedy=f"choose another --out, or remove the line from {self._path} and the runs of these settings: "
                + ", ".join(str(self._path.parent / "runs" / name) for name in record["runs"]),
            )
        return record

    def add(self, job: Job, outcome: Mapping[str, Any]) -> Record:
        """Appends a line; it is on the disk when this returns."""
        given = {} if self._given is None else {"given": self._given.to_json()}
        settings = {"recipe": job.recipe, "runs": _plain(job.runs)} | given
        record = {"arm": job.arm, "seed": job.seed, **settings, **outcome}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records[job.arm, job.seed] = record
        return record


def _plain(runs: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    return {name: list(overrides) for name, overrides in runs.items()}


def _flat(recipe: str, runs: Mapping[str, Any]) -> set[str]:
    return {recipe, *(override for overrides in runs.values() for override in overrides)}
