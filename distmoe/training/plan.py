"""What is decided before data is read: everything that plain values, files and the number of ranks can contradict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distmoe.data.config import SamplingConfig
from distmoe.data.sampling import follows_sizes, mixture_weights
from distmoe.engine import deepspeed_folder, ds_config, supported
from distmoe.engine.ds_config import DeepSpeedSettings
from distmoe.models.build import sketch_model
from distmoe.models.layer_plan import routed_layers
from distmoe.models.shape import ModelShape, resolve_shape
from distmoe.moe.config import MoEConfig
from distmoe.parallel.config import ParallelConfig
from distmoe.parallel.env import RankEnv, device
from distmoe.parallel.placement import Placement, place
from distmoe.parallel.rank_grid import RankGrid
from distmoe.tasks import TaskGrouping, TaskSet
from distmoe.training.checks import check_agreement
from distmoe.training.config import RunConfig
from distmoe.training.grouping import resolve_grouping
from distmoe.training.run_data import Sources, open_sources


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on paper.

    Attributes:
        sources: Tasks and tokenizer, before any example is read.
        shape: Of the model.
        routed_layers: Model layers that are routed.
        grouping: Who shares them.
        settings: DeepSpeed's configuration, completed.
        parallel: How ranks are used.
        num_ranks: Data ranks.
        learning: Whether structural learning will change the grouping.
        moe: Options of routed layers, if there are any.
    """

    sources: Sources
    shape: ModelShape
    routed_layers: tuple[int, ...]
    grouping: TaskGrouping
    settings: DeepSpeedSettings
    parallel: ParallelConfig
    num_ranks: int
    learning: bool
    moe: MoEConfig | None

    @property
    def tasks(self) -> TaskSet:
        return self.sources.tasks

    @property
    def pool_sizes(self) -> tuple[tuple[int, ...], ...]:
        """Experts of each task group, per routed layer."""
        return () if self.moe is None else tuple(self.moe.pool_sizes(partition) for partition in self.grouping.layers)

    def place(self, weights: Sequence[float]) -> Placement:
        """Places the task groups and refuses a combination that DeepSpeed would not train exactly.

        Raises:
            ParallelError: If the task groups cannot be placed on these ranks.
            ConfigError: If the combination is not supported.
        """
        placement = place(
            self.grouping,
            weights,
            num_ranks=self.num_ranks,
            ep_size=self.parallel.ep_size,
            mode=self.parallel.placement,
        )
        routed = bool(self.routed_layers)
        supported.check(
            self.settings,
            placement=placement,
            num_ranks=self.num_ranks,
            routed=routed,
            tensor=self.parallel.tensor,
            spans_may_change=self.learning,
            pool_sizes=self.pool_sizes,
        )
        return placement

    def check_placement(self, sampling: SamplingConfig) -> None:
        """Refuses, before hours of tokenization, what can be seen without the sizes of the data.

        Raises:
            ParallelError: If no weights would let the task groups be placed on these ranks.
            ConfigError: If the combination is not supported, whatever the sizes.
        """
        weights = mixture_weights([1] * len(self.tasks), sampling, names=self.tasks.names)
        if self.parallel.placement == "colocated":
            self.place([1.0] * len(self.tasks))  # weights do not matter
        elif not (self.routed_layers and follows_sizes(sampling)):
            self.place(weights)
        else:
            sizes_aside = place(
                self.grouping, weights, num_ranks=self.num_ranks, ep_size=self.parallel.ep_size, mode="partitioned"
            )
            supported.check_any_mixture(
                self.settings,
                grouping=self.grouping,
                num_blocks=sizes_aside.num_blocks,
                num_ranks=self.num_ranks,
                tensor=self.parallel.tensor,
                spans_may_change=self.learning,
            )


def make_plan(config: RunConfig, env: RankEnv, *, device_type: str | None = None) -> Plan:
    """Makes the plan; reads no example and builds nothing.

    Args:
        config: The run.
        env: One of its ranks.
        device_type: ``cpu`` or ``cuda``, where the ranks will run elsewhere; None: this rank's device.

    Raises:
        DistmoeError: If any two of its parts contradict each other.
    """
    num_ranks = RankGrid(env.rank, env.world_size, config.parallel.tensor).num_data_ranks
    micro_batch_size = config.data.micro_batch_size or config.data.batch_size // num_ranks
    settings = ds_config.resolve(
        config.parallel.deepspeed,
        optimizer=config.optimizer,
        micro_batch_size=micro_batch_size,
        accumulation_steps=config.data.batch_size // (micro_batch_size * num_ranks),
        num_ranks=num_ranks,
        device_type=device_type or device(env).type,
    )
    sources = open_sources(config)
    shape = resolve_shape(config.model, sources.vocab_size, sources.pad_token_id)
    layers = routed_layers(config.model.moe, shape.num_layers)
    grouping = resolve_grouping(config.structure, sources.tasks, len(layers))
    check_agreement(config, tasks=sources.tasks, shape=shape, grouping=grouping, zero_stage=settings.stage)
    sketch_model(config.model, shape=shape, tasks=sources.tasks, grouping=grouping)
    if config.checkpoint.format == "deepspeed":
        deepspeed_folder.check(
            settings,
            routed=bool(layers),
            ep_size=config.parallel.ep_size,
            partitioned=config.parallel.placement == "partitioned",
        )
    plan = Plan(
        sources=sources,
        shape=shape,
        routed_layers=layers,
        grouping=grouping,
        settings=settings,
        parallel=config.parallel,
        num_ranks=num_ranks,
        learning=config.structure.learn is not None,
        moe=config.model.moe,
    )
    plan.check_placement(config.data.sampling)
    return plan
