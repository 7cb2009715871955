"""What a structural phase leaves: one record for metrics, reports and studies, and the lines that are said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distmoe.structure.propose import Proposal
from distmoe.structure.tree import family_agreement
from distmoe.tasks import TaskSet
from distmoe.training.structural.state import Pending, StructureState
from distmoe.training.structural.trial import Verdict


def phase_record(
    proposals: tuple[Proposal, ...],
    verdicts: tuple[Verdict, ...],
    structure: StructureState,
    tasks: TaskSet,
    *,
    before: int,
    after: int,
) -> dict[str, Any]:
    """Proposals, verdicts and the grouping in force, with parameters before and after."""
    return {
        "phase": structure.phase,
        "version": structure.version,
        "proposals": [proposal.to_json() for proposal in proposals],
        "verdicts": [verdict.to_json() for verdict in verdicts],
        "grouping": structure.grouping.to_json()["layers"],
        "bans": [ban.to_json() for ban in structure.bans],
        "parameters": {"before": before, "after": after},
        "next_phase_at": structure.border,
        "probe": structure.probe,
        "family_agreement": family_agreement([task.family for task in tasks], structure.grouping.layers[-1]),
    }


def spell_plans(pending: Pending, step: int) -> str:
    sizes = " or ".join(str(len(plan.merges)) for plan in pending.plans)
    return f"structural phase at step {step}: {sizes} merges proposed"


def spell_phase(record: dict[str, Any], step: int) -> str:
    verdicts = record["verdicts"]
    kept = sum(verdict["accepted"] for verdict in verdicts)
    sizes = " / ".join(str(len(partition)) for partition in record["grouping"])
    parameters = record["parameters"]
    return (
        f"structural phase {record['phase']} at step {step}: {len(verdicts)} merges proposed, {kept} kept; task groups "
        f"per routed layer {sizes}; {parameters['before']:,} -> {parameters['after']:,} parameters; "
        f"{record['seconds']:.0f} s, as long as {record['steps_worth']:.0f} training steps"
    )


def spell_groups(record: dict[str, Any], names: Sequence[str]) -> str:
    task_groups = " | ".join(" ".join(names[task] for task in own) for own in record["grouping"][-1])
    agreement = record["family_agreement"]
    found = "" if agreement is None else f"; agreement with the tasks' families {agreement:.2f} (adjusted Rand index)"
    return f"task groups of the last routed layer: {task_groups}{found}"
