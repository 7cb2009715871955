"""Configuration of ranks: placement, expert parallelism and the DeepSpeed file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distmoe.config import Section


class ParallelConfig(Section):
    placement: Literal["colocated", "partitioned"] = Field(
        "colocated",
        description="Every block hosts all task groups, or blocks are dealt to task groups by mixture weight.",
    )
    ep_size: int = Field(
        1, gt=0, description="Consecutive ranks that share one copy of the experts; keep it inside a node."
    )
    tensor: int = Field(
        1,
        gt=0,
        description="Neighbouring ranks that share every dense matrix (tensor parallelism); they see the same batch, "
        "experts are whole on each. Divides the ranks; keep it inside a node. Needs megatron-core: the extra lm.",
    )
    sequence: bool = Field(
        False,
        description="Sequence parallelism: tensor ranks also share the positions between the cut matrices (norms, "
        "dropout, residuals), which saves activations' memory. Needs parallel.tensor above 1.",
    )
    timeout_minutes: float = Field(10.0, gt=0, description="A collective that waits longer ends the job.")
    silence_seconds: float = Field(
        60.0,
        ge=5,
        description="A rank that gives no sign of life for so long (dead, stopped, cut off) ends the job on all nodes.",
    )
    guard: bool = Field(
        False,
        description="Compare the sequence of collectives and the split tables of all ranks before each: slow, names a "
        "rank that goes its own way.",
    )
    deepspeed: str = Field(
        "auto",
        description="Name in ds_configs/ or path of a DeepSpeed JSON; auto: zero1_bf16 on GPU, zero1_fp32 on CPU. "
        "--deepspeed_config wins.",
    )
