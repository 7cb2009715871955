"""From configuration to everything a run consists of, in the order in which errors are cheapest.

1. The plan: tasks, grouping, shape, DeepSpeed settings, and every contradiction between them. 2. Data: tokenized by
one rank, read by all. 3. Placement, checked against the table of supported combinations. 4. The checkpoint to resume
from is checked. 5. Process groups, model, pretrained weights, engine. 6. The run folder is claimed, the checkpoint
loaded. A user error in any of them is raised by all ranks (:mod:`distmoe.training.agreement`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

from distmoe import seed
from distmoe.checkpoint import store
from distmoe.checkpoint.import_hf import load_pretrained
from distmoe.checkpoint.manifest import read_manifest
from distmoe.checkpoint.run_files import write_run_files
from distmoe.data.sources.base import Split
from distmoe.engine.engine import Engine
from distmoe.engine.initialize import initialize
from distmoe.log import get_logger
from distmoe.models.build import build_model
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.moe.layer import RoutedFeedForward
from distmoe.moe.statistics import RoutingStatistics
from distmoe.parallel import process_groups
from distmoe.parallel.env import RankEnv
from distmoe.parallel.placement import Placement
from distmoe.parallel.traffic import TrafficCounter
from distmoe.training import summary
from distmoe.training.agreement import Agreement, is_distributed
from distmoe.training.checkpoints import Checkpoints
from distmoe.training.config import RunConfig
from distmoe.training.evaluate import Evaluation, evaluate
from distmoe.training.journal import Journal
from distmoe.training.monitor import build_monitor
from distmoe.training.objective import Objective
from distmoe.training.plan import Plan, make_plan
from distmoe.training.progress import Progress
from distmoe.training.run_data import RunData, encode
from distmoe.training.run_folder import SUMMARY_FILE, RunFolder, claim, write_json
from distmoe.training.selection import BestScore
from distmoe.training.state import TrainerState
from distmoe.training.trainer import Trainer
from distmoe.training.window import LossWindow

_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is ready to train."""

    trainer: Trainer
    checkpoints: Checkpoints
    journal: Journal
    evaluate: Callable[[Split], Evaluation]
    state: TrainerState


def build_run(config: RunConfig, *, folder: RunFolder, resume: str, agreement: Agreement, env: RankEnv) -> Run:
    """Builds everything; collective.

    Raises:
        DistmoeError: The same on all ranks, if data, model and parallelism do not fit each other.
    """
    plan = agreement.run(lambda: make_plan(config, env))
    data = agreement.run(lambda: encode(plan.sources, config, env=env, agreement=agreement))
    placement = agreement.run(lambda: plan.place(data.weights))
    if folder.resume_from is not None:
        store.check(folder.resume_from, tasks=plan.tasks, grouping=plan.grouping)
    hosted = _host_model(config, plan, placement, agreement)
    engine = hosted.engine
    seed.seed_all(config.run.seed, "train", env.rank)

    agreement.from_rank_0(lambda: claim(folder, config, step=_step_of(folder), resume=resume))
    if env.rank == 0:
        _announce(config, folder, plan, data, placement, hosted)
    state = TrainerState(best=BestScore(patience=config.run.early_stop))
    loader = data.train_loader(placement, rank=env.rank, pin_memory=engine.device.type == "cuda")
    eval_loader = data.eval_loader(placement, rank=env.rank, pin_memory=engine.device.type == "cuda")
    objective = Objective(
        plan.tasks,
        plan.grouping,
        weights=None if config.model.moe is None else config.model.moe.losses,
        world_size=env.world_size,
        all_reduce=_all_reduce if is_distributed() else None,
        device=engine.device,
    )
    journal = _build_journal(config, folder, plan, hosted, auxiliary_names=objective.auxiliary_names, rank=env.rank)
    checkpoints = Checkpoints(
        folder.checkpoints,
        config=config,
        engine=engine,
        loader=loader,
        journal=journal,
        state=state,
        tasks=plan.tasks,
        grouping=plan.grouping,
        rank=env.rank,
    )
    if folder.resume_from is not None:
        checkpoints.load(folder.resume_from)
        journal.say(f"resumed from {folder.resume_from} at step {state.step}")

    def evaluate_split(split: Split) -> Evaluation:
        batches = eval_loader.batches(split)
        return evaluate(engine, batches, split=split, tasks=plan.tasks, sizes=data.split_sizes(split))

    trainer = Trainer(
        engine=engine,
        objective=objective,
        tasks=plan.tasks,
        loader=loader,
        evaluate=evaluate_split,
        journal=journal,
        checkpoints=checkpoints,
        run_config=config.run,
        schedule=config.schedule,
        state=state,
    )
    return Run(trainer=trainer, checkpoints=checkpoints, journal=journal, evaluate=evaluate_split, state=state)


@dataclass(frozen=True)
class _Hosted:
    """The model in its engine, and what could be seen of it before."""

    engine: Engine
    parameters: summary.ParameterCount
    traffic: tuple[TrafficCounter, ...]


def _host_model(config: RunConfig, plan: Plan, placement: Placement, agreement: Agreement) -> _Hosted:
    groups = process_groups.create(placement, timeout=timedelta(minutes=config.parallel.timeout_minutes))
    model = agreement.run(lambda: _build_model(config, plan, groups))
    top_k = 0 if config.model.moe is None else config.model.moe.top_k
    parameters = summary.count_parameters(model, num_experts=plan.num_experts(config.model.moe), top_k=top_k)
    traffic = tuple(module.traffic for module in model.modules() if isinstance(module, RoutedFeedForward))
    engine = agreement.run(
        lambda: initialize(
            model, settings=plan.settings, optimizer=config.optimizer, process_groups=groups, placement=placement
        )
    )
    return _Hosted(engine, parameters, traffic)


def _build_model(config: RunConfig, plan: Plan, groups: process_groups.ProcessGroups) -> MultiTaskEncoder:
    model = build_model(
        config.model,
        shape=plan.shape,
        tasks=plan.tasks,
        grouping=plan.grouping,
        hosting=groups.hosting,
        seed=config.run.seed,
    )
    if config.model.pretrained is not None:
        _log.info("%s", load_pretrained(model, config.model.pretrained, config=config.model, seed=config.run.seed))
    return model


def _announce(
    config: RunConfig, folder: RunFolder, plan: Plan, data: RunData, placement: Placement, hosted: _Hosted
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
        settings=plan.settings,
    )
    write_json(folder.path / SUMMARY_FILE, facts.to_json())
    for line in facts.lines(config, device=hosted.engine.device.type):
        _log.info("%s", line)


def _build_journal(
    config: RunConfig, folder: RunFolder, plan: Plan, hosted: _Hosted, *, auxiliary_names: tuple[str, ...], rank: int
) -> Journal:
    moe, on = config.model.moe, hosted.engine.device
    statistics = None
    if moe is not None:
        statistics = RoutingStatistics(
            num_tasks=len(plan.tasks),
            num_experts=plan.num_experts(moe),
            top_k=moe.top_k,
            num_task_groups=[plan.grouping.num_task_groups(layer) for layer in range(plan.grouping.num_layers)],
            device=on,
        )
    return Journal(
        tasks=plan.tasks,
        routed_layers=plan.routed_layers,
        window=LossWindow(len(plan.tasks), auxiliary_names, num_counters=len(hosted.traffic), device=on),
        statistics=statistics,
        all_reduce=_all_reduce if is_distributed() else None,
        monitor=build_monitor(
            folder.path,
            rank=rank,
            name=config.run.name,
            config=config.model_dump(),
            tensorboard=config.run.tensorboard,
            wandb=config.run.wandb,
        ),
        progress=Progress(config.schedule.num_steps, start=_step_of(folder), rank=rank),
        lr=config.optimizer.lr,
        rank=rank,
        traffic=hosted.traffic,
    )


def _step_of(folder: RunFolder) -> int:
    return 0 if folder.resume_from is None else read_manifest(folder.resume_from).step


def _all_reduce(values: Tensor) -> Tensor:
    dist.all_reduce(values)
    return values
