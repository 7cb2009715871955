"""What a run must remember about its structure; plain values in every checkpoint, equal on all ranks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distmoe.structure.config import LearnConfig
from distmoe.structure.frontier import Frontier, advance, is_finished, start
from distmoe.structure.plan import Ban, Merge, MergePlan
from distmoe.structure.propose import Proposal
from distmoe.tasks import TaskGrouping


@dataclass(frozen=True)
class Pending:
    """Proposals whose trial has not been decided: after a crash they are tried again, from the same checkpoint.

    Attributes:
        plans: What is tried, the coarser plan first.
        proposals: What the plans are made of, one per frontier.
    """

    plans: tuple[MergePlan, ...]
    proposals: tuple[Proposal, ...]

    @property
    def merges(self) -> tuple[Merge, ...]:
        """All that are tried."""
        return tuple(merge for plan in self.plans for merge in plan.merges)

    def keep(self, merges: Collection[Merge]) -> MergePlan:
        """The plan with these merges of several plans, and with what the plans join below them."""
        joined = {(merge.layer, merge.result) for merge in merges}
        found = {
            merge
            for merge in self.merges
            if any(merge.layer >= layer and merge.result == tasks for layer, tasks in joined)
        }
        return replace(self.plans[-1], merges=tuple(sorted(found)))

    def to_json(self) -> dict[str, Any]:
        return {
            "plans": [plan.to_json() for plan in self.plans],
            "proposals": [proposal.to_json() for proposal in self.proposals],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Pending:
        return cls(
            tuple(MergePlan.from_json(row) for row in value["plans"]),
            tuple(Proposal.from_json(row) for row in value["proposals"]),
        )


@dataclass(frozen=True, kw_only=True)
class StructureState:
    """Where structural learning stands.

    Attributes:
        grouping: In force.
        frontiers: Task groups that may still be merged.
        bans: Merges that were undone.
        version: Structure changes so far.
        phase: Structural phases so far.
        border: Step of the next structural phase; None: structural learning has ended.
        probe: SHA-256 of the probe set.
        pending: The proposal on trial.
    """

    grouping: TaskGrouping
    frontiers: tuple[Frontier, ...]
    bans: tuple[Ban, ...] = ()
    version: int = 0
    phase: int = 0
    border: int | None
    probe: str
    pending: Pending | None = None

    @classmethod
    def begin(cls, grouping: TaskGrouping, config: LearnConfig, *, num_steps: int, probe: str) -> StructureState:
        frontiers = start(grouping)
        border = None if _is_finished(frontiers, (), config) else _border(config, 0, num_steps, phase=0)
        return cls(grouping=grouping, frontiers=frontiers, border=border, probe=probe)

    @property
    def is_learning(self) -> bool:
        return self.border is not None

    def propose(self, pending: Pending) -> StructureState:
        """With proposals on trial."""
        return replace(self, pending=pending)

    def decide(self, kept: MergePlan, config: LearnConfig, *, step: int, num_steps: int) -> StructureState:
        """After a structural phase whose merges ``kept`` stay; the others are banned, unless a kept one holds them."""

        def holds(one: Merge, other: Merge) -> bool:
            return one.layer == other.layer and set(other.result) <= set(one.result)

        proposed = () if self.pending is None else self.pending.merges
        rejected = tuple(
            Ban(merge.layer, merge.result) for merge in proposed if not any(holds(one, merge) for one in kept.merges)
        )
        bans = tuple(sorted({*self.bans, *rejected}))
        frontiers = advance(kept.after, self.frontiers, kept.merges)
        is_over = config.restart or _is_finished(frontiers, bans, config)
        return replace(
            self,
            grouping=kept.after,
            frontiers=frontiers,
            bans=bans,
            version=self.version + bool(kept.merges),
            phase=self.phase + 1,
            border=None if is_over else _border(config, step, num_steps, phase=self.phase + 1),
            pending=None,
        )

    def to_json(self) -> dict[str, Any]:
        pending = self.pending
        return {
            "grouping": self.grouping.to_json(),
            "frontiers": [frontier.to_json() for frontier in self.frontiers],
            "bans": [ban.to_json() for ban in self.bans],
            "version": self.version,
            "phase": self.phase,
            "border": self.border,
            "probe": self.probe,
            "pending": None if pending is None else pending.to_json(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StructureState:
        pending = value["pending"]
        return cls(
            grouping=TaskGrouping.from_json(value["grouping"]),
            frontiers=tuple(Frontier.from_json(row) for row in value["frontiers"]),
            bans=tuple(Ban.from_json(row) for row in value["bans"]),
            version=value["version"],
            phase=value["phase"],
            border=value["border"],
            probe=value["probe"],
            pending=None if pending is None else Pending.from_json(pending),
        )


def _is_finished(frontiers: Sequence[Frontier], bans: Collection[Ban], config: LearnConfig) -> bool:
    return is_finished(frontiers, bans, relative=config.is_relative, with_whole=config.trial_steps > 0)


def _border(config: LearnConfig, step: int, num_steps: int, *, phase: int) -> int | None:
    """The end of the next task phase, if it is not too late and a trial and at least one more step fit behind it."""
    border = step + config.task_steps_of(phase)
    if config.until is not None and border > config.until:
        return None
    return border if border + config.trial_steps_behind < num_steps else None
