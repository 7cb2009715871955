"""What depends on the task grouping: built once at the start, and again whenever task groups have been merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from distmoe import seed
from distmoe.checkpoint.carry import Carrier
from distmoe.checkpoint.manifest import read_manifest
from distmoe.checkpoint.saver import Saver
from distmoe.data.loader import StepLoader
from distmoe.data.pool_loader import PoolLoader
from distmoe.models.build import MultiTaskModel
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.moe.statistics import RoutingStatistics
from distmoe.parallel import process_groups
from distmoe.parallel.env import RankEnv
from distmoe.parallel.placement import Placement
from distmoe.parallel.watch.whereabouts import Whereabouts
from distmoe.structure.frontier import advance
from distmoe.structure.plan import MergePlan
from distmoe.training.agreement import Agreement, is_distributed
from distmoe.training.checkpoints import Checkpoints
from distmoe.training.config import RunConfig
from distmoe.training.evaluate import Evaluation, evaluate
from distmoe.training.frozen_trunk import MIB, FrozenTrunk
from distmoe.training.hosted import Hosted, host_model
from distmoe.training.journal import Journal, Outlets
from distmoe.training.monitor import build_monitor
from distmoe.training.objective import Objective
from distmoe.training.plan import Plan
from distmoe.training.progress import Progress
from distmoe.training.run_data import RunData
from distmoe.training.run_folder import RunFolder
from distmoe.training.selection import BestScore
from distmoe.training.state import TrainerState
from distmoe.training.structural.alignment import AlignmentTerm
from distmoe.training.structural.makings import Makings
from distmoe.training.structural.probe import ProbeSet
from distmoe.training.trainer import Trainer
from distmoe.training.uncertainty import Scorer, UncertaintyLoader
from distmoe.training.window import LossWindow


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is ready to train."""

    trainer: Trainer
    checkpoints: Checkpoints
    journal: Journal
    evaluate: Callable[[str], Evaluation]
    state: TrainerState
    model: MultiTaskModel
    placement: Placement
    parameters: int
    process_groups: process_groups.ProcessGroups

    def dismantle(self) -> None:
        """Frees engine and process groups, so that another run can be built in this process. Collective.

        Waits for the checkpoint that is being written: what is built next may begin from it.
        """
        self.checkpoints.wait()
        self.trainer.engine.destroy()
        self.process_groups.destroy()


@dataclass(frozen=True)
class Workshop:
    """Builds the part of a run that depends on the task grouping."""

    config: RunConfig
    folder: RunFolder
    plan: Plan
    data: RunData
    probe: ProbeSet | None
    saver: Saver
    agreement: Agreement
    env: RankEnv
    whereabouts: Whereabouts

    def rebuild(
        self,
        old: Run,
        *,
        merges: MergePlan,
        makings: Makings,
        checkpoint: Path | None,
        outlets: Outlets,
        on_trial: bool,
    ) -> Run:
        """The run with merged task groups, its state carried from a checkpoint before the merges. Collective.

        Args:
            old: Dismantled here.
            merges: What to merge; nothing goes back to the checkpoint.
            makings: What joined layers are made with, besides their members; also of merges that are not made.
            checkpoint: Of the grouping before; None: at the run's first step, as if it had begun with the merges.
            outlets: Where lines go.
            on_trial: See :class:`~distmoe.training.trainer.Trainer`.
        """
        moe, structure = self.config.model.moe, old.state.structure
        assert moe is not None, "structural learning without routed layers"
        assert structure is not None, "structural learning without a state"
        used = old.trainer.loader.accounts.state_dict()
        old.dismantle()
        plan = replace(self.plan, grouping=merges.after)
        placement = self.agreement.run(lambda: plan.place(self.data.weights))
        hosted = self.host(plan, placement)
        spent = old.state.train_seconds if checkpoint is None else 0.0
        state = TrainerState(
            train_seconds=spent, best=BestScore(patience=self.config.run.early_stop), structure=structure
        )
        learning = replace(structure, grouping=merges.after)
        learning = replace(learning, frontiers=advance(merges.after, structure.frontiers, merges.merges))
        state.structure = learning
        if checkpoint is None:
            seed.seed_all(self.config.run.seed, "train", hosted.process_groups.grid.data_rank)
        run = self.assemble(plan, placement, hosted, state, outlets=outlets, on_trial=on_trial)
        if checkpoint is None:
            run.state.structure = structure
            run.trainer.loader.accounts.load_state_dict(used)
            return run
        carrier = Carrier(
            plan=merges,
            routed_layers=plan.routed_layers,
            sizes_before=tuple(moe.pool_sizes(partition) for partition in merges.before.layers),
            sizes_after=plan.pool_sizes,
            unit=moe.unit,
            num_heads=plan.shape.num_heads,
            mode="merge" if moe.experts_per_task is None else "pool",
            betas=(self.config.optimizer.betas[0], self.config.optimizer.betas[1]),
            names=tuple(run.trainer.engine.tensor_records()),
            grams=makings.grams,
            created={layer.merge: layer.tensors for layer in makings.layers},
        )
        run.checkpoints.load(checkpoint, carrier)
        # What arms of a trial have used is used up, also when training goes back to where they began.
        run.trainer.loader.accounts.load_state_dict(used)
        if merges.merges:
            # Scores of another structure are no measure for this one, and its checkpoints cannot be loaded into it.
            run.state.best = BestScore(patience=self.config.run.early_stop)
        return run

    def loads(self) -> tuple[int, ...]:
        """Tokens of each task per million examples of the mixture: what its share of a merge is proportional to."""
        lengths = [float(split.lengths_N.mean()) for split in self.data.encoded.train]
        return tuple(
            max(1, round(1_000_000 * weight * length))
            for weight, length in zip(self.data.weights, lengths, strict=True)
        )

    def host(self, plan: Plan, placement: Placement) -> Hosted:
        """Model, process groups and engine."""
        return host_model(self.config, plan, placement, self.agreement, self.whereabouts)

    def outlets(self) -> Outlets:
        """Opens the run's sinks; once, after the folder is claimed."""
        config, rank, step = self.config, self.env.rank, step_of(self.folder)
        monitor = build_monitor(
            self.folder.path, rank=rank, name=config.run.name, config=config.model_dump(),
            tensorboard=config.run.tensorboard, wandb=config.run.wandb, step=step,
        )  # fmt: skip
        return Outlets(monitor, Progress(config.schedule.num_steps, start=step, rank=rank))

    def assemble(
        self,
        plan: Plan,
        placement: Placement,
        hosted: Hosted,
        state: TrainerState,
        *,
        outlets: Outlets,
        on_trial: bool = False,
    ) -> Run:
        """Everything around the engine."""
        config, data, engine = self.config, self.data, hosted.engine
        grid, data_group = hosted.process_groups.grid, hosted.process_groups.data
        pin_memory = engine.device.type == "cuda"
        loader = self.agreement.run(lambda: _build_loader(config, data, placement, hosted, rank=grid.data_rank))
        eval_loader = data.eval_loader(placement, rank=grid.data_rank, pin_memory=pin_memory)
        alignment = self._alignment(plan, placement, hosted, state)
        objective = Objective(
            plan.tasks,
            plan.grouping,
            pool_sizes=plan.pool_sizes,
            weights=None if config.model.moe is None else config.model.moe.losses,
            world_size=grid.num_data_ranks,
            all_reduce=_all_reduce(data_group),
            device=engine.device,
            alignment=alignment,
        )
        journal = _build_journal(config, plan, placement, hosted, names=objective.auxiliary_names, outlets=outlets)
        journal.accounts = loader.accounts
        checkpoints = Checkpoints(
            self.folder.checkpoints,
            config=config,
            engine=engine,
            loader=loader,
            journal=journal,
            state=state,
            tasks=plan.tasks,
            grouping=plan.grouping,
            saver=self.saver,
            grid=grid,
        )

        def evaluate_split(split: str) -> Evaluation:
            batches = eval_loader.batches(split)
            answers = data.answers(split, engine.module)
            return evaluate(
                engine,
                batches,
                split=split,
                tasks=plan.tasks,
                sizes=data.split_sizes(split),
                answers=answers,
                process_group=data_group,
            )

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
            alignment=alignment,
            whereabouts=self.whereabouts,
            on_trial=on_trial,
        )
        return Run(
            trainer=trainer,
            checkpoints=checkpoints,
            journal=journal,
            evaluate=evaluate_split,
            state=state,
            model=hosted.model,
            placement=placement,
            parameters=hosted.parameters.total,
            process_groups=hosted.process_groups,
        )

    def _alignment(self, plan: Plan, placement: Placement, hosted: Hosted, state: TrainerState) -> AlignmentTerm | None:
        """The term of the frontiers in force; none where its weight is 0."""
        learn, structure = self.config.structure.learn, state.structure
        if learn is None or structure is None or self.probe is None or not learn.alignment:
            return None
        term = AlignmentTerm(
            probe=self.probe,
            model_layers=plan.routed_layers,
            grouping=plan.grouping,
            placement=placement,
            rank=self.env.rank,
            weight=learn.alignment,
            num_examples=min(learn.alignment_examples, len(self.probe)),
            width=plan.shape.hidden_size,
            device=hosted.engine.device,
        )
        term.follow(structure.frontiers if structure.is_learning else ())
        return term


def _build_loader(config: RunConfig, data: RunData, placement: Placement, hosted: Hosted, *, rank: int) -> StepLoader:
    engine, sampling = hosted.engine, config.data.sampling
    pin_memory = engine.device.type == "cuda"
    if sampling.strategy != "uncertainty":
        return data.train_loader(placement, rank=rank, pin_memory=pin_memory)
    scorer = Scorer(
        data.tasks,
        regression_score=sampling.regression_score,
        label_variances=[float(split.labels_N.var()) for split in data.encoded.train],
        device=engine.device,
    )
    pools = data.pool_loader(placement, rank=rank, pin_memory=pin_memory)
    trunk = _build_trunk(config, hosted, pools)
    has_dropout = config.model.dropout > 0 or config.model.attention_dropout > 0
    return UncertaintyLoader(
        pools, engine=engine, scorer=scorer, trunk=trunk, train_from_trunk=trunk is not None and not has_dropout
    )


def _build_trunk(config: RunConfig, hosted: Hosted, pools: PoolLoader) -> FrozenTrunk | None:
    """None where nothing is frozen, nothing is scored twice, or every layer call is a collective (ZeRO-3)."""
    budget, stage = config.data.sampling.trunk_cache * MIB, hosted.engine.settings.stage
    model = hosted.model
    assert isinstance(model, MultiTaskEncoder), "candidates of a decoder are not scored"
    if not budget or stage == 3 or not model.encoder.trunk_depth:
        return None
    trunk = FrozenTrunk(model, pools, num_steps=config.schedule.num_steps, budget=budget)
    return trunk if len(trunk) else None


def _build_journal(
    config: RunConfig,
    plan: Plan,
    placement: Placement,
    hosted: Hosted,
    *,
    names: tuple[str, ...],
    outlets: Outlets,
) -> Journal:
    moe, on = config.model.moe, hosted.engine.device
    grid, data_group, num_layers = hosted.process_groups.grid, hosted.process_groups.data, len(hosted.traffic)
    statistics = None
    if moe is not None:
        statistics = RoutingStatistics(
            num_tasks=len(plan.tasks),
            pool_sizes=plan.pool_sizes,
            top_k=moe.top_k,
            device=on,
        )
    return Journal(
        tasks=plan.tasks,
        routed_layers=plan.routed_layers,
        window=LossWindow(len(plan.tasks), names, num_counters=2 * num_layers, device=on, process_group=data_group),
        statistics=statistics,
        all_reduce=_all_reduce(data_group),
        monitor=outlets.monitor,
        progress=outlets.progress,
        lr=config.optimizer.lr,
        rank=grid.data_rank,
        traffic=hosted.traffic,
        hosts=[grid.world_ranks(placement.span_ranks(layer, grid.data_rank)) for layer in range(num_layers)],
    )


def step_of(folder: RunFolder) -> int:
    """Optimizer steps that the run has done when it starts."""
    return 0 if folder.resume_from is None else read_manifest(folder.resume_from).step


def _all_reduce(process_group: ProcessGroup | None) -> Callable[[Tensor], Tensor] | None:
    """Sums over the ranks that see different batches; None on one process."""
    return partial(_sum_over, process_group=process_group) if is_distributed() else None


def _sum_over(values: Tensor, process_group: ProcessGroup | None) -> Tensor:
    dist.all_reduce(values, group=process_group)
    return values
