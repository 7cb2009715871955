"""The configuration of a whole run: all sections side by side."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distmoe.checkpoint.config import CheckpointConfig
from distmoe.config import Section
from distmoe.data.config import DataConfig, TasksConfig
from distmoe.engine.config import OptimizerConfig, ScheduleConfig
from distmoe.models.config import ModelConfig
from distmoe.parallel.config import ParallelConfig
from distmoe.structure.config import StructureConfig


class RunSection(Section):
    name: str = Field("demo", min_length=1, description="The run's folder is output_dir/name.")
    output_dir: str = Field("runs", description="Parent of run folders.")
    seed: int = Field(0, ge=0, description="Seed of weights, data order and dropout.")
    log_every: int = Field(10, gt=0, description="Optimizer steps between lines of metrics.jsonl.")
    eval_every: int | None = Field(100, gt=0, description="Optimizer steps between evaluations; null: only at the end.")
    max_new_tokens: int = Field(
        64, gt=0, description="Longest answer that evaluation generates, for tasks whose metric compares texts."
    )
    early_stop: int | None = Field(
        None, gt=0, description="Evaluations without a better macro score before training stops; null: never."
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="A loss that is not finite stops the run, or its step is skipped and counted."
    )
    tensorboard: bool = Field(True, description="Write TensorBoard files when tensorboard is installed.")
    wandb: bool = Field(False, description="Log to Weights & Biases; refused when wandb is not installed.")
    report: bool = Field(True, description="Draw report/ at the end.")


class RunConfig(Section):
    """Everything that shapes a run; saved as ``config.yaml`` in the run's folder."""

    run: RunSection = Field(default_factory=RunSection)
    tasks: TasksConfig = Field(default_factory=TasksConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    structure: StructureConfig = Field(default_factory=StructureConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
