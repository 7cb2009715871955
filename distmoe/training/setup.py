"""From configuration to everything a run consists of, in the order in which errors are cheapest.

1. The plan: tasks, grouping, shape, DeepSpeed settings, and every contradiction between them, also with the checkpoint
to resume from. 2. Data: tokenized by one rank, read by all. 3. Placement, checked against the table of supported
combinations. 4. The checkpoint to resume from is checked whole. 5. Process groups, model, pretrained weights, engine.
6. The run folder is claimed, the checkpoint loaded. A user error in any of them is raised by all ranks
(:mod:`distmoe.training.agreement`).

What depends on the task grouping is built by a :class:`~distmoe.training.workshop.Workshop`, which a run with
structural learning visits again whenever task groups have been merged.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial

from distmoe import seed
from distmoe.checkpoint import folders, store
from distmoe.checkpoint.run_files import write_run_files
from distmoe.checkpoint.saver import Saver
from distmoe.errors import CheckpointError
from distmoe.log import get_logger
from distmoe.parallel import process_groups
from distmoe.parallel.env import RankEnv
from distmoe.parallel.placement import Placement
from distmoe.parallel.watch.whereabouts import Whereabouts
from distmoe.structure.transfer import check_examples
from distmoe.training import summary
from distmoe.training.agreement import Agreement
from distmoe.training.config import RunConfig
from distmoe.training.hosted import Hosted
from distmoe.training.plan import Plan, make_plan
from distmoe.training.run_data import RunData, encode
from distmoe.training.run_folder import SUMMARY_FILE, RunFolder, claim, refuse_ended, write_json
from distmoe.training.selection import BestScore
from distmoe.training.state import TrainerState
from distmoe.training.structural.probe import ProbeSet
from distmoe.training.structural.state import StructureState
from distmoe.training.workshop import Run, Workshop, step_of

_log = get_logger(__name__)


def build_run(
    config: RunConfig, *, folder: RunFolder, resume: str, agreement: Agreement, env: RankEnv, whereabouts: Whereabouts
) -> tuple[Run, Workshop]:
    """Builds everything; collective. The workshop builds the run anew for another grouping.

    Raises:
        DistmoeError: The same on all ranks, if data, model and parallelism do not fit each other.
    """
    whereabouts.at("planning the run")
    plan = agreement.run(lambda: make_plan(config, env))
    if folder.resume_from is not None:  # another task set would also have another probe set, a worse explanation
        store.check(folder.resume_from, tasks=plan.tasks, checksums=False)
        refuse_ended(folder, config, step=step_of(folder))
    whereabouts.at("preparing the data (rank 0 tokenizes, the others wait)")
    data = agreement.run(lambda: encode(plan.sources, config, env=env, agreement=agreement))
    structure, probe = agreement.run(lambda: _structure(config, folder, plan, data))
    grouping = plan.grouping if structure is None else structure.grouping
    plan = replace(plan, grouping=grouping)
    placement = agreement.run(lambda: plan.place(data.weights))
    if folder.resume_from is not None:
        store.check(folder.resume_from, tasks=plan.tasks, grouping=grouping)
    whereabouts.at("building model and engine")
    workshop = Workshop(config, folder, plan, data, probe, _saver(config), agreement, env, whereabouts)
    hosted = workshop.host(plan, placement)
    # Tensor neighbours drop the same states: they compute the same model.
    seed.seed_all(config.run.seed, "train", hosted.process_groups.grid.data_rank)

    agreement.from_rank_0(lambda: claim(folder, config, step=step_of(folder), resume=resume))
    if env.rank == 0:
        _announce(config, folder, plan, data, placement, hosted)
    state = TrainerState(best=BestScore(patience=config.run.early_stop), structure=structure)
    run = workshop.assemble(plan, placement, hosted, state, outlets=workshop.outlets())
    if folder.resume_from is not None:
        run.checkpoints.load(folder.resume_from)
        run.journal.say(f"resumed from {folder.resume_from} at step {state.step}")
    return run, workshop


def _structure(
    config: RunConfig, folder: RunFolder, plan: Plan, data: RunData
) -> tuple[StructureState | None, ProbeSet | None]:
    """Where structural learning stands, from the checkpoint to resume from or at its beginning."""
    learn = config.structure.learn
    if learn is None:
        return None, None
    probe = ProbeSet(data.encoded, num_examples=learn.probe_examples, seed=config.run.seed, split=learn.probe_split)
    if learn.similarity != "cka":
        check_examples(probe.counts(), plan.tasks.names)
    if folder.resume_from is None:
        state = StructureState.begin(
            plan.grouping, learn, num_steps=config.schedule.num_steps, probe=probe.probe.sha256
        )
        return state, probe
    saved = store.read_trainer_state(folder.resume_from).get("progress", {}).get("structure")
    if saved is None or saved["probe"] != probe.probe.sha256:
        raise CheckpointError(
            f"{folder.resume_from} cannot be continued by structural learning",
            got="no structure in it" if saved is None else "another probe set",
            expected="a checkpoint of a run with the same structure.learn and training data",
            remedy="resume with the data and configuration of the run, or start a new one",
        )
    return StructureState.from_json(saved), probe


def _saver(config: RunConfig) -> Saver:
    """What writes the run's checkpoints; a collective if it does so beside training."""
    options = config.checkpoint
    timeout = timedelta(minutes=config.parallel.timeout_minutes)
    return Saver(
        keep=partial(folders.prune, keep_last=options.keep_last, keep_best=options.keep_best),
        background=process_groups.create_background(timeout=timeout) if options.asynchronous else None,
    )


def _announce(
    config: RunConfig, folder: RunFolder, plan: Plan, data: RunData, placement: Placement, hosted: Hosted
) -> None:
    """Writes what the report and an export need, and tells the person what is about to be trained. Rank 0 only."""
    write_run_files(folder.path, shape=plan.shape, tokenizer=plan.sources.tokenizer)
    facts = summary.Facts(
        tasks=plan.tasks,
        sizes=data.sizes,
        weights=data.weights,
        routed_layers=plan.routed_layers,
        grouping=plan.grouping,
        placement=placement,
        parameters=hosted.parameters,
        pool_sizes=plan.pool_sizes,
        shares=hosted.shares,
        tensor=config.parallel.tensor,
        settings=plan.settings,
        cut_under_shift={
            name: sum(split.num_truncated for split in splits) for name, splits in data.encoded.shifted.items()
        },
    )
    write_json(folder.path / SUMMARY_FILE, facts.to_json())
    for line in facts.lines(config, device=hosted.engine.device.type):
        _log.info("%s", line)
