"""Everything that configuration, tasks and model must agree about, before any data is read; for runs and forecasts."""

from __future__ import annotations

from distmoe.data.pool_loader import check_uncertainty
from distmoe.models.build import check_layers
from distmoe.models.shape import ModelShape
from distmoe.models.tensor_parallel import check_tensor
from distmoe.tasks import TaskGrouping, TaskSet
from distmoe.training.config import RunConfig
from distmoe.training.contradictions import (
    check_answers,
    check_learning,
    check_positions,
    check_structure,
    check_unit,
)


def check_agreement(
    config: RunConfig, *, tasks: TaskSet, shape: ModelShape, grouping: TaskGrouping, zero_stage: int
) -> None:
    """Refuses what contradicts itself; under ZeRO-0 only what no stage could mend.

    Raises:
        DistmoeError: Naming what does not fit.
    """
    check_positions(config, shape.max_positions)
    check_layers(config.model, shape, tasks)
    check_tensor(shape, config.parallel.tensor)
    check_answers(config, tasks, max_positions=shape.max_positions, zero_stage=zero_stage)
    if config.data.sampling.strategy == "uncertainty":
        check_uncertainty(config.data, tasks)
    check_structure(config, tasks, grouping)
    check_unit(config, zero_stage=zero_stage)
    check_learning(config, tasks, grouping, zero_stage=zero_stage)
