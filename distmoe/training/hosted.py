"""The model of a run inside its engine: the part of setting up that meets DeepSpeed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from distmoe.checkpoint.import_hf import load_pretrained
from distmoe.checkpoint.shares import parameter_shares_of
from distmoe.engine.engine import Engine
from distmoe.engine.initialize import initialize
from distmoe.log import get_logger
from distmoe.models.build import MultiTaskModel, build_model
from distmoe.models.routed_layer import RoutedLayer
from distmoe.models.tensor_parallel import cut_over_tensor_ranks
from distmoe.moe.layer import RoutedFeedForward
from distmoe.nn.conditional.counts import ParameterShares
from distmoe.parallel import process_groups
from distmoe.parallel.exchange_call import ExchangeObserver
from distmoe.parallel.guard import CollectiveGuard
from distmoe.parallel.placement import Placement
from distmoe.parallel.traffic import TrafficCounter
from distmoe.parallel.watch.whereabouts import Whereabouts
from distmoe.training import summary
from distmoe.training.agreement import Agreement
from distmoe.training.config import RunConfig
from distmoe.training.plan import Plan

_log = get_logger(__name__)


@dataclass(frozen=True)
class Hosted:
    """The model in its engine, and what could be seen of it before."""

    engine: Engine
    model: MultiTaskModel
    process_groups: process_groups.ProcessGroups
    parameters: summary.ParameterCount
    shares: ParameterShares
    traffic: tuple[TrafficCounter, ...]


def host_model(
    config: RunConfig, plan: Plan, placement: Placement, agreement: Agreement, whereabouts: Whereabouts
) -> Hosted:
    """Makes process groups, model and engine for a placement. Collective.

    Args:
        config: The run.
        plan: Tasks, grouping, shape, DeepSpeed settings.
        placement: Task groups to ranks.
        agreement: For errors of single ranks.
        whereabouts: Is told of every exchange of routed layers.

    Raises:
        DistmoeError: The same on all ranks, if the model cannot be built, loaded or hosted.
    """
    observers: tuple[ExchangeObserver, ...] = (whereabouts,)
    if config.parallel.guard:
        observers += (CollectiveGuard(),)
    groups = process_groups.create(
        placement,
        tensor=config.parallel.tensor,
        timeout=timedelta(minutes=config.parallel.timeout_minutes),
        observers=observers,
    )
    model = agreement.run(lambda: _build_model(config, plan, groups))
    top_k = 0 if config.model.moe is None else config.model.moe.top_k
    parameters = summary.count_parameters(model, pool_sizes=plan.pool_sizes, top_k=top_k)
    if groups.tensor is not None:
        cut_over_tensor_ranks(model, groups.tensor, sequence=config.parallel.sequence)
        parameters = replace(parameters, per_rank=sum(parameter.numel() for parameter in model.parameters()))
    routed = (RoutedFeedForward, RoutedLayer)
    traffic = tuple(module.traffic for module in model.modules() if isinstance(module, routed))
    engine = agreement.run(
        lambda: initialize(
            model, settings=plan.settings, optimizer=config.optimizer, process_groups=groups, placement=placement
        )
    )
    shares = parameter_shares_of(engine.tensor_records())
    return Hosted(engine, model, groups, parameters, shares, traffic)


def _build_model(config: RunConfig, plan: Plan, groups: process_groups.ProcessGroups) -> MultiTaskModel:
    learning = config.structure.learn is not None
    model = build_model(
        config.model,
        shape=plan.shape,
        tasks=plan.tasks,
        grouping=plan.grouping,
        hosting=groups.hosting,
        seed=config.run.seed,
        alike=learning,
    )
    if config.model.pretrained is not None:
        folder, seed_of_run = config.model.pretrained, config.run.seed
        _log.info("%s", load_pretrained(model, folder, config=config.model, seed=seed_of_run, alike=learning))
    return model
