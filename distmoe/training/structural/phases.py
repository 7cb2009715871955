"""The order of structural learning (specification, sections 4 and 7), on every rank alike.

At a border, between two optimizer steps:

1. Task groups are compared and merges proposed; all ranks compare the hash of the plans.
2. A checkpoint is written that names the plans. A run that is killed from here on tries them again from there.
3. Trial: from that checkpoint, so many steps without merges and so many with each plan; validation errors decide.
4. The last plan kept as it is: training goes on behind its trial. Otherwise it goes back to the checkpoint, with what
   was kept. With ``structure.learn.restart``, arms and what was kept begin at the run's first step instead.
5. A checkpoint of the new structure is written.

The engine is built anew for every change: weights and moments are carried by name through the checkpoint.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from distmoe.errors import TrainingError
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.structure.propose import Proposal, plan_trials, propose
from distmoe.training.agreement import is_distributed
from distmoe.training.journal import Outlets
from distmoe.training.selection import BestScore
from distmoe.training.stop_signal import StopSignal
from distmoe.training.structural.arms import try_plans
from distmoe.training.structural.makings import prepare
from distmoe.training.structural.record import phase_record, spell_groups, spell_phase, spell_plans
from distmoe.training.structural.similarity import Comparer
from distmoe.training.structural.state import Pending, StructureState
from distmoe.training.structural.trial import Cost, Rule, Verdict, judge

if TYPE_CHECKING:
    from distmoe.structure.config import LearnConfig
    from distmoe.training.trainer import Ended
    from distmoe.training.workshop import Run, Workshop


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
    began, structure, learn = time.perf_counter(), _structure_of(run), _learn(workshop)
    step, seconds_per_step = run.state.step, run.state.train_seconds / max(run.state.step, 1)
    before = run.evaluate("validation")
    if structure.pending is None:
        # The checkpoint below bears this score: who looks for the best must know it, too.
        run.state.best.update(before.macro, step)
        proposals = _propose(workshop, run, structure)
        structure = structure.propose(_plan(workshop, structure, proposals))
        if structure.pending is not None and structure.pending.merges:
            run.state.structure = structure
            run.checkpoints.save(before)
    pending = structure.pending
    assert pending is not None
    checkpoint = workshop.folder.checkpoints / f"step_{step}"
    parameters, outlets = run.parameters, run.journal.outlets
    verdicts: tuple[Verdict, ...] = ()
    makings = prepare(workshop, run, pending)
    if pending.merges:
        outlets.progress.say(spell_plans(pending, step))
        attempt = partial(
            try_plans, workshop, stop=stop, makings=makings, checkpoint=None if learn.restart else checkpoint,
            before=before, num_steps=step if learn.restart else learn.trial_steps,
        )  # fmt: skip
        tried = attempt(run, pending=pending, with_trial=bool(learn.trial_steps))
        run = tried.run
        if tried.stopped is not None:
            run.journal.report_to(outlets)
            return run, tried.stopped
        if tried.outcome is None:
            verdicts = tuple(Verdict(merge, Cost(0.0, 0.0), None, 0.0, True) for merge in pending.plans[-1].merges)
        else:
            rule = Rule(tolerance=learn.tolerance, confidence=learn.confidence)
            verdicts = judge(pending, workshop.plan.tasks, tried.outcome, rule)
    kept = pending.keep([verdict.merge for verdict in verdicts if verdict.accepted])
    if kept.merges == pending.plans[-1].merges:
        # After a restart the lines of the first task phase stay: those steps were trained, too.
        if pending.merges and not learn.restart:
            tried.lines.hand_over(outlets.monitor)
    elif kept.merges and learn.restart:
        tried = attempt(run, pending=replace(pending, plans=(kept,)), with_trial=False)
        run = tried.run
        if tried.stopped is not None:
            run.journal.report_to(outlets)
            return run, tried.stopped
    else:
        run = workshop.rebuild(
            run, merges=kept, makings=makings, checkpoint=checkpoint, outlets=outlets, on_trial=False
        )
    if kept.merges:
        # Scores of the trial belong to no checkpoint.
        run.state.best = BestScore(patience=workshop.config.run.early_stop)
    structure = structure.decide(kept, learn, step=run.state.step, num_steps=workshop.config.schedule.num_steps)
    run = _settled(run, structure, outlets)
    tasks = workshop.plan.tasks
    record = phase_record(pending.proposals, verdicts, structure, tasks, before=parameters, after=run.parameters)
    assert workshop.config.model.moe is not None
    record["pool_sizes"] = [workshop.config.model.moe.pool_sizes(own) for own in structure.grouping.layers]
    record["amalgamation"] = [layer.to_json() for layer in makings.layers]
    seconds = time.perf_counter() - began
    record |= {"seconds": round(seconds, 2), "steps_worth": round(seconds / seconds_per_step, 1)}
    run.journal.restructured(record, run.state.step)
    run.journal.say(spell_phase(record, run.state.step))
    run.journal.say(spell_groups(record, tasks.names))
    run.checkpoints.save(before if run.state.step == step and not kept.merges else None)
    return run, None


def _settled(run: Run, structure: StructureState, outlets: Outlets) -> Run:
    """The run off trial, with the alignment term of the structure in force."""
    run.journal.report_to(outlets)
    run.state.structure = structure
    trainer = replace(run.trainer, on_trial=False)
    if trainer.alignment is not None:
        trainer.alignment.follow(structure.frontiers if structure.is_learning else ())
    return replace(run, trainer=trainer)


def _propose(workshop: Workshop, run: Run, structure: StructureState) -> tuple[Proposal, ...]:
    probe, learn, engine = workshop.probe, _learn(workshop), run.trainer.engine
    assert probe is not None
    assert isinstance(run.model, MultiTaskEncoder), "structural learning compares encoders"
    engine.eval_mode()
    try:
        comparer = Comparer(
            model=run.model,
            grouping=structure.grouping,
            placement=run.placement,
            routed_layers=workshop.plan.routed_layers,
            tasks=workshop.plan.tasks,
            probe=probe,
            rank=workshop.env.rank,
            device=engine.device,
        )
        return tuple(
            propose(
                frontier,
                comparer.compare(frontier, learn.similarity),
                threshold=None if learn.is_relative else learn.threshold,
                bans=structure.bans,
            )
            for frontier in structure.frontiers
        )
    finally:
        engine.train_mode()


def _plan(workshop: Workshop, structure: StructureState, proposals: tuple[Proposal, ...]) -> Pending:
    """The plans, equal on all ranks. Collective.

    Raises:
        TrainingError: If the ranks' plans differ.
    """
    learn = _learn(workshop)
    plans = plan_trials(
        structure.grouping,
        proposals,
        version=structure.version,
        loads=workshop.loads(),
        with_wholes=learn.trial_steps > 0,
        to_the_end=learn.restart,
    )
    digest = hashlib.sha256("".join(plan.sha256 for plan in plans).encode()).hexdigest()
    hashes: list[Any] = [digest]
    if is_distributed():
        hashes = [None] * dist.get_world_size()
        dist.all_gather_object(hashes, digest)
    if len(set(hashes)) > 1:
        raise TrainingError(
            "the ranks propose different merges",
            got=", ".join(f"rank {rank}: {value[:12]}" for rank, value in enumerate(hashes)),
            expected="one plan",
            remedy="look for ranks with other software or hardware; go on from the last checkpoint with --resume auto",
        )
    return Pending(plans, proposals)


def _structure_of(run: Run) -> StructureState:
    assert run.state.structure is not None
    return run.state.structure


def _learn(workshop: Workshop) -> LearnConfig:
    assert workshop.config.structure.learn is not None
    return workshop.config.structure.learn
