"""What a user can set to arrange a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distmoe.engine.ds_config import REDUCE_BUCKET, DeepSpeedSettings
from distmoe.parallel.config import ParallelConfig
from distmoe.parallel.placement import PlacementMode
from distmoe.training.config import RunConfig


@dataclass(frozen=True)
class Choice:
    """An arrangement, before it is placed.

    Attributes:
        mode: ``parallel.placement``.
        ep_size: ``parallel.ep_size``.
        stage: ZeRO stage.
        precision: fp32, bf16 or fp16.
        fp32_accumulation: Whether micro-batches are added up in fp32.
        bucket: Elements of ``zero_optimization.reduce_bucket_size``.
        overlap_comm: Whether reductions run beside the backward pass.
        offload: Whether the optimizer lives in host memory.
    """

    mode: PlacementMode
    ep_size: int
    stage: int
    precision: str
    fp32_accumulation: bool = True
    bucket: int = REDUCE_BUCKET
    overlap_comm: bool = False
    offload: bool = False

    @classmethod
    def of(
        cls, parallel: ParallelConfig, settings: DeepSpeedSettings, *, stage: int | None, precision: str | None
    ) -> Choice:
        """What the recipe and its DeepSpeed file say, but for a stage and a precision that are not None."""
        same = precision in (None, settings.precision) and stage in (None, settings.stage)
        precision = precision or settings.precision
        return cls(
            parallel.placement,
            parallel.ep_size,
            settings.stage if stage is None else stage,
            precision,
            fp32_accumulation=settings.accumulation_dtype == "fp32" if same else precision != "fp16",
            bucket=settings.reduce_bucket_size,
            overlap_comm=settings.overlap_comm,
            offload=settings.offload,
        )

    def __str__(self) -> str:
        """In words; what belongs into the DeepSpeed file comes first."""
        sums = f", data_types.grad_accum_dtype {self.precision}" if self.rounds_sums else ""
        return (
            f"ZeRO-{self.stage} {self.precision}{sums}, parallel.placement={self.mode} parallel.ep_size={self.ep_size}"
        )

    @property
    def rounds_sums(self) -> bool:
        """Whether micro-batches, where a step has several, are added up in bf16."""
        return self.precision == "bf16" and not self.fp32_accumulation

    @property
    def element(self) -> int:
        """Bytes of a number that the model computes with."""
        return 4 if self.precision == "fp32" else 2

    def config(self, run: RunConfig) -> RunConfig:
        """The run with this placement."""
        parallel = run.parallel.model_copy(update={"placement": self.mode, "ep_size": self.ep_size})
        return run.model_copy(update={"parallel": parallel})

    def deepspeed(self) -> dict[str, Any]:
        """The part of a DeepSpeed file that says so."""
        zero: dict[str, Any] = {
            "stage": self.stage,
            "reduce_bucket_size": self.bucket,
            "overlap_comm": self.overlap_comm,
        }
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        values: dict[str, Any] = {"zero_optimization": zero}
        if self.precision != "fp32":
            values[self.precision] = {"enabled": True}
        if not self.fp32_accumulation:
            values["data_types"] = {"grad_accum_dtype": self.precision}
        return values
