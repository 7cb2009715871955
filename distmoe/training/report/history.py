"""Reads a run folder into one value; every picture and table of the report is a pure function of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from distmoe.errors import DataError

Record = dict[str, Any]


@dataclass(frozen=True)
class RunHistory:
    """What a run has written.

    Attributes:
        name: Of the run.
        config: Resolved configuration, as plain values.
        summary: ``summary.json``: tasks, sizes, parameters, placement; may be empty.
        result: ``result.json``: written when the run has ended; may be empty.
        train: Lines of ``metrics.jsonl`` with a loss, ascending by step.
        evaluations: Lines with an evaluation, ascending by step.
        structure: Lines of structural phases, one per phase.
    """

    name: str
    config: Record = field(default_factory=dict)
    summary: Record = field(default_factory=dict)
    result: Record = field(default_factory=dict)
    train: tuple[Record, ...] = ()
    evaluations: tuple[Record, ...] = ()
    structure: tuple[Record, ...] = ()

    @property
    def partitions(self) -> list[list[list[int]]]:
        """Task groups per routed layer, as they are at the end; empty for a dense run."""
        if self.structure:
            return self.structure[-1]["structure"]["grouping"]
        return self.summary.get("grouping", {}).get("layers", [])

    @property
    def pool_sizes(self) -> list[list[int]]:
        """Experts of each task group, per routed layer, as they are at the end; empty where a run does not say."""
        if self.structure:
            return self.structure[-1]["structure"].get("pool_sizes", [])
        return self.summary.get("pool_sizes", [])

    @property
    def task_names(self) -> list[str]:
        """In the run's order, else in order of first appearance."""
        if "tasks" in self.summary:
            return [task["name"] for task in self.summary["tasks"]]
        seen: dict[str, None] = {}
        for line in self.train:
            seen.update(dict.fromkeys(line.get("tasks", {})))
        for line in self.evaluations:
            seen.update(dict.fromkeys(line["evaluation"]["tasks"]))
        return list(seen)

    def split(self, name: str) -> list[tuple[int, Record]]:
        """(step, evaluation) of one split."""
        return [(line["step"], line["evaluation"]) for line in self.evaluations if line["evaluation"]["split"] == name]

    def recent_routing(self, num_lines: int = 10) -> Record:
        """Model layer -> ``load`` and ``tasks``, added up over the newest lines; empty for a dense run.

        One line may hold no example of a rare task, whose row would be blank. Lines from before a structural phase
        count other experts and are left out.
        """
        found: Record = {}
        lines = [line for line in self.train if line.get("routing")][-num_lines:]
        for line in [line for line in lines if _num_experts(line) == _num_experts(lines[-1])]:
            for layer, counts in line["routing"].items():
                sums = found.setdefault(layer, {"load": [0] * len(counts["load"]), "tasks": {}})
                sums["load"] = _add(sums["load"], counts["load"])
                for task, row in counts["tasks"].items():
                    sums["tasks"][task] = _add(sums["tasks"].get(task, [0] * len(row)), row)
        return found


def read_history(folder: Path) -> RunHistory:
    """Reads what exists; a run that is still going is fine.

    Raises:
        DataError: If the folder has no ``metrics.jsonl``.
    """
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise DataError(
            "this is not the folder of a run",
            got=str(folder),
            expected="a folder with metrics.jsonl",
            remedy="give the folder runs/NAME that training has written",
        )
    lines = []
    for text in metrics.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue  # the last line of a run that is being written
    lines.sort(key=lambda line: line["step"])
    return RunHistory(
        name=folder.resolve().name,
        config=_yaml(folder / "config.yaml"),
        summary=_json(folder / "summary.json"),
        result=_json(folder / "result.json"),
        train=tuple(line for line in lines if "loss" in line),
        evaluations=tuple(line for line in lines if "evaluation" in line),
        # A run that was killed while it settled a phase has written its line twice.
        structure=tuple({line["structure"]["phase"]: line for line in lines if "structure" in line}.values()),
    )


def _num_experts(line: Record) -> list[int]:
    return [len(counts["load"]) for counts in line["routing"].values()]


def _add(left: list[int], right: list[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _json(path: Path) -> Record:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _yaml(path: Path) -> Record:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
