"""The checks that a run makes before its data is read, by the same functions (:mod:`distmoe.training.plan`)."""

from __future__ import annotations

from distmoe.data.pool_loader import check_uncertainty
from distmoe.models.build import check_layers
from distmoe.models.shape import ModelShape
from distmoe.models.tensor_parallel import check_tensor
from distmoe.tasks import TaskGrouping, TaskSet
from distmoe.training.config import RunConfig
from distmoe.training.contradictions import check_answers, check_learning, check_positions, check_structure


def check_run(config: RunConfig, *, tasks: TaskSet, shape: ModelShape, grouping: TaskGrouping, zero_stage: int) -> None:
    """Refuses what contradicts itself; under ZeRO-0 only what no stage could mend.

    Raises:
        DistmoeError: As the run itself would.
    """
    check_positions(config, shape.max_positions)
    check_layers(config.model, shape, tasks)
    check_tensor(shape, config.parallel.tensor)
    check_answers(config, tasks, max_positions=shape.max_positions, zero_stage=zero_stage)
    if config.data.sampling.strategy == "uncertainty":
        check_uncertainty(config.data, tasks)
    check_structure(config, tasks, grouping)
    check_learning(config, tasks, grouping, zero_stage=zero_stage)
