"""The order of structural learning (specification, sections 4 and 7), on every rank alike.

At a border, between two optimizer steps:

1. Task groups are compared and merges proposed; all ranks compare the hash of the plan.
2. A checkpoint is written that names the plan. A run that is killed from here on tries it again from there.
3. Trial: from that checkpoint, so many steps without the merges and so many with them; validation losses decide.
4. All merges kept: training goes on behind the trial. Otherwise it goes back to the checkpoint, with what was kept.
5. A checkpoint of the new structure is written.

The engine is built anew for every change: weights and moments are carried by name through the checkpoint.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from distmoe.errors import TrainingError
from distmoe.structure.plan import MergePlan
from distmoe.structure.propose import Proposal, plan_merges, propose
from distmoe.training.agreement import is_distributed
from distmoe.training.evaluate import Evaluation
from distmoe.training.journal import Outlets
from distmoe.training.monitor import Buffer, Monitor
from distmoe.training.progress import Progress
from distmoe.training.stop_signal import StopSignal
from distmoe.training.structural.similarity import compare
from distmoe.training.structural.state import StructureState
from distmoe.training.structural.trial import Losses, Verdict, judge

if TYPE_CHECKING:
    from distmoe.training.trainer import Ended
    from distmoe.training.workshop import Makings, Run, Workshop


def train_in_phases(workshop: Workshop, run: Run, stop: StopSignal) -> tuple[Run, Ended]:
    """Trains to the end, through all structural phases if there are any. Collective.

    Returns:
        The run in force, whose engine may be another than before, and how it ended.

    Raises:
        TrainingError: If a loss is not finite, or ranks propose different merges.
    """
    while True:
        structure = run.state.structure
        if structure is None or structure.border is None:
            ended = run.trainer.run(stop)
            assert ended is not None, "a run without border must end"
            return run, ended
        if structure.pending is None:
            paused = run.trainer.run(stop, until=structure.border)
            if paused is not None:
                return run, paused
        run, stopped = _structural_phase(workshop, run, stop)
        if stopped is not None:
            return run, stopped


def _structural_phase(workshop: Workshop, run: Run, stop: StopSignal) -> tuple[Run, Ended | None]:
    began, structure = time.perf_counter(), _structure_of(run)
    before = run.evaluate("validation")
    step = run.state.step
    if structure.pending is None:
        proposals = _propose(workshop, run, structure)
        plan = _plan(workshop, structure, proposals)
        structure = structure.propose(plan, tuple(proposal.to_json() for proposal in proposals))
        if plan.merges:
            run.state.structure = structure
            run.checkpoints.save(before)
    pending = structure.pending
    assert pending is not None
    plan = pending.plan
    checkpoint = workshop.folder.checkpoints / f"step_{step}"
    parameters, outlets = run.parameters, run.journal.outlets
    verdicts: tuple[Verdict, ...] = ()
    makings = workshop.prepare(run, plan)
    if plan.merges:
        run, verdicts, stopped = _try(
            workshop, run, stop, plan=plan, checkpoint=checkpoint, before=before, makings=makings
        )
        if stopped is not None:
            run.journal.report_to(outlets)
            return run, stopped
    kept = plan.keep([verdict.merge for verdict in verdicts if verdict.accepted])
    if len(kept.merges) < len(plan.merges):
        run = workshop.rebuild(
            run, merges=kept, checkpoint=checkpoint, outlets=outlets, on_trial=False, makings=makings
        )
    structure = structure.decide(
        kept, _learn(workshop), step=run.state.step, num_steps=workshop.config.schedule.num_steps
    )
    run = _settled(run, structure, outlets)
    record = _record(pending.proposals, verdicts, structure, before=parameters, after=run.parameters)
    assert workshop.config.model.moe is not None
    record["pool_sizes"] = [workshop.config.model.moe.pool_sizes(own) for own in structure.grouping.layers]
    record["amalgamation"] = [layer.to_json() for layer in makings.layers]
    run.journal.restructured(record | {"seconds": round(time.perf_counter() - began, 2)}, run.state.step)
    run.journal.say(_spell(record, run.state.step))
    run.checkpoints.save(before if run.state.step == step and not kept.merges else None)
    return run, None


def _try(
    workshop: Workshop,
    run: Run,
    stop: StopSignal,
    *,
    plan: MergePlan,
    checkpoint: Path,
    before: Evaluation,
    makings: Makings,
) -> tuple[Run, tuple[Verdict, ...], Ended | None]:
    """Both arms of a trial, the one with the merges last; its lines count if every merge is kept."""
    learn, outlets = _learn(workshop), run.journal.outlets
    losses: list[Losses] = []
    outlets.progress.say(f"structural phase at step {run.state.step}: {len(plan.merges)} merges proposed")
    for merges in (plan.keep(()), plan) if learn.trial_steps else (plan,):
        lines = Buffer()
        silent = Outlets(Monitor((lines,) if workshop.env.rank == 0 else ()), Progress(0, rank=-1))
        run = workshop.rebuild(
            run, merges=merges, checkpoint=checkpoint, outlets=silent, on_trial=True, makings=makings
        )
        if learn.trial_steps:
            stopped = run.trainer.run(stop, until=run.state.step + learn.trial_steps)
            if stopped is not None:
                return run, (), stopped
            losses.append(_losses(run.evaluate("validation")))
    if not learn.trial_steps:
        return run, tuple(Verdict(merge, 1.0, 1.0, True) for merge in plan.merges), None
    control, merged = losses
    verdicts = judge(
        plan.merges,
        workshop.plan.tasks,
        before=_losses(before),
        control=control,
        merged=merged,
        tolerance=learn.tolerance,
    )
    if all(verdict.accepted for verdict in verdicts):
        lines.hand_over(outlets.monitor)
    return run, verdicts, None


def _settled(run: Run, structure: StructureState, outlets: Outlets) -> Run:
    """The run off trial, with the alignment term of the structure in force."""
    run.journal.report_to(outlets)
    run.state.structure = structure
    trainer = replace(run.trainer, on_trial=False)
    if trainer.alignment is not None:
        trainer.alignment.follow(structure.frontiers if structure.is_learning else ())
    return replace(run, trainer=trainer)


def _propose(workshop: Workshop, run: Run, structure: StructureState) -> list[Proposal]:
    probe, learn = workshop.probe, _learn(workshop)
    assert probe is not None
    engine = run.trainer.engine
    engine.eval_mode()
    try:
        return [
            propose(
                frontier,
                compare(
                    run.model,
                    frontier,
                    grouping=structure.grouping,
                    model_layer=workshop.plan.routed_layers[frontier.layer],
                    probe=probe,
                    placement=run.placement,
                    rank=workshop.env.rank,
                    device=engine.device,
                ),
                threshold=learn.threshold,
                bans=structure.bans,
            )
            for frontier in structure.frontiers
        ]
    finally:
        engine.train_mode()


def _plan(workshop: Workshop, structure: StructureState, proposals: list[Proposal]) -> MergePlan:
    """The plan, equal on all ranks. Collective.

    Raises:
        TrainingError: If the ranks' plans differ.
    """
    plan = plan_merges(structure.grouping, proposals, version=structure.version, loads=workshop.loads())
    hashes: list[Any] = [plan.sha256]
    if is_distributed():
        hashes = [None] * dist.get_world_size()
        dist.all_gather_object(hashes, plan.sha256)
    if len(set(hashes)) > 1:
        raise TrainingError(
            "the ranks propose different merges",
            got=", ".join(f"rank {rank}: {value[:12]}" for rank, value in enumerate(hashes)),
            expected="one plan",
            remedy="look for ranks with other software or hardware; go on from the last checkpoint with --resume auto",
        )
    return plan


def _record(
    proposals: tuple[dict[str, Any], ...],
    verdicts: tuple[Verdict, ...],
    structure: StructureState,
    *,
    before: int,
    after: int,
) -> dict[str, Any]:
    return {
        "phase": structure.phase,
        "version": structure.version,
        "proposals": list(proposals),
        "verdicts": [verdict.to_json() for verdict in verdicts],
        "grouping": structure.grouping.to_json()["layers"],
        "bans": [ban.to_json() for ban in structure.bans],
        "parameters": {"before": before, "after": after},
        "next_phase_at": structure.border,
    }


def _spell(record: dict[str, Any], step: int) -> str:
    verdicts = record["verdicts"]
    kept = sum(verdict["accepted"] for verdict in verdicts)
    sizes = " / ".join(str(len(partition)) for partition in record["grouping"])
    parameters = record["parameters"]
    return (
        f"structural phase {record['phase']} at step {step}: {len(verdicts)} merges proposed, {kept} kept; task groups "
        f"per routed layer {sizes}; {parameters['before']:,} -> {parameters['after']:,} parameters"
    )


def _losses(evaluation: Evaluation) -> Losses:
    return {row.task: row.loss for row in evaluation.tasks}


def _structure_of(run: Run) -> StructureState:
    assert run.state.structure is not None
    return run.state.structure


def _learn(workshop: Workshop) -> Any:
    assert workshop.config.structure.learn is not None
    return workshop.config.structure.learn
