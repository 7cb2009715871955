"""Which combinations of ZeRO stage, precision and placement train exactly: a table, read by code, docs and tests.

A row is *supported* only if a parity test trains it against a single process (``tests/distributed/test_parity.py``).
Everything else is refused before anything is built, with the reason and the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass

from distmoe.engine.ds_config import DeepSpeedSettings
from distmoe.errors import ConfigError
from distmoe.parallel.placement import Placement


@dataclass(frozen=True)
class Combination:
    """What the table decides about.

    Attributes:
        stage: ZeRO stage.
        precision: fp32, bf16 or fp16.
        routed: Whether the model has routed layers.
        num_ranks: Data ranks.
        partitioned: Whether some ranks lack some task groups.
        uniform: Whether, at each layer, all spans have equally many blocks: experts have equally many copies.
        symmetric: Whether all ranks hold equally many expert elements at each layer.
        fp32_accumulation: Whether micro-batches are added up in fp32.
        overlap_comm: Whether reductions run beside the backward pass.
        offload: Whether the optimizer lives in host memory.
        tensor: Whether dense matrices are cut over tensor ranks.
    """

    stage: int
    precision: str
    routed: bool
    num_ranks: int
    partitioned: bool = False
    uniform: bool = True
    symmetric: bool = True
    fp32_accumulation: bool = True
    overlap_comm: bool = False
    offload: bool = False
    tensor: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the table. A condition of None means "any"; the first row that matches decides."""

    supported: bool
    note: str
    remedy: str = ""
    stages: tuple[int, ...] | None = None
    precisions: tuple[str, ...] | None = None
    routed: bool | None = None
    several_ranks: bool | None = None
    partitioned: bool | None = None
    uniform: bool | None = None
    symmetric: bool | None = None
    fp32_accumulation: bool | None = None
    overlap_comm: bool | None = None
    offload: bool | None = None
    tensor: bool | None = None

    def matches(self, case: Combination) -> bool:
        flags = (
            "routed",
            "partitioned",
            "uniform",
            "symmetric",
            "fp32_accumulation",
            "overlap_comm",
            "offload",
            "tensor",
        )
        return (
            (self.stages is None or case.stage in self.stages)
            and (self.precisions is None or case.precision in self.precisions)
            and (self.several_ranks is None or self.several_ranks == (case.num_ranks > 1))
            and all(getattr(self, flag) in (None, getattr(case, flag)) for flag in flags)
        )

    def conditions(self) -> str:
        """The conditions in words, for docs and messages."""
        words = []
        if self.stages is not None:
            words.append("ZeRO-" + "/".join(map(str, self.stages)))
        if self.precisions is not None:
            words.append("/".join(self.precisions))
        names = {
            "routed": ("routed layers", "dense model"),
            "several_ranks": ("several ranks", "one rank"),
            "partitioned": ("partitioned", "colocated"),
            "uniform": ("equally many copies of every expert", "unequal numbers of copies"),
            "symmetric": ("equal expert sizes on all ranks", "unequal expert sizes"),
            "fp32_accumulation": ("fp32 accumulation", "low-precision accumulation"),
            "overlap_comm": ("overlap_comm", "no overlap_comm"),
            "offload": ("optimizer offload", "no offload"),
            "tensor": ("tensor parallelism", "no tensor parallelism"),
        }
        for flag, (yes, no) in names.items():
            value = getattr(self, flag)
            if value is not None:
                words.append(yes if value else no)
        return ", ".join(words)


TABLE: tuple[Row, ...] = (
    Row(
        False,
        "ZeRO-0 in low precision has no fp32 master weights that a checkpoint could hold",
        "use a ZeRO-1 file, for example zero1_bf16",
        stages=(0,),
        precisions=("bf16", "fp16"),
    ),
    Row(
        False,
        "ZeRO-0 with routed layers clips by a norm without the experts",
        "use a ZeRO-1 file, for example zero1_fp32",
        stages=(0,),
        routed=True,
        several_ranks=True,
    ),
    Row(False, "DeepSpeed's ZeRO-0 ignores the optimizer's offload", "use zero2_offload", stages=(0,), offload=True),
    Row(
        False,
        "partitioned task groups differ between ranks, and ZeRO-2 reduces in the order of the backward pass",
        "use a ZeRO-1 file, or parallel.placement=colocated",
        stages=(2,),
        routed=True,
        partitioned=True,
    ),
    Row(
        False,
        "partitioned placement was not proven exact under ZeRO-3",
        "use a ZeRO-1 file, or parallel.placement=colocated",
        stages=(3,),
        routed=True,
        partitioned=True,
    ),
    Row(
        False,
        "with unequal expert sizes on the ranks, overlapped reductions of different sizes meet",
        "set zero_optimization.overlap_comm to false",
        stages=(1,),
        routed=True,
        symmetric=False,
        overlap_comm=True,
    ),
    Row(
        False, "optimizer offload is exact under ZeRO-1 and ZeRO-2 only", "use zero2_offload", stages=(3,), offload=True
    ),
    Row(
        False,
        "with unequal numbers of expert copies, DeepSpeed's bf16 optimizer has no process group for the norm",
        "set data_types.grad_accum_dtype to bf16, use fp32, or offload the optimizer",
        stages=(1,),
        precisions=("bf16",),
        routed=True,
        uniform=False,
        fp32_accumulation=True,
        offload=False,
    ),
    Row(
        False,
        "DeepSpeed's ZeRO-0 has no norm over the slices of tensor ranks",
        "use a ZeRO-1 file, for example zero1_fp32",
        stages=(0,),
        tensor=True,
    ),
    Row(True, "exact", stages=(1, 2), precisions=("fp32",), offload=False, tensor=True),
    Row(
        True,
        "exact up to rounding",
        stages=(1, 2),
        precisions=("bf16",),
        fp32_accumulation=True,
        offload=False,
        tensor=True,
    ),
    Row(
        False,
        "no test has shown that this trains exactly with tensor parallelism",
        "use zero1 or zero2 with fp32 or bf16, without offload, or set parallel.tensor=1",
        tensor=True,
    ),
    Row(True, "exact", stages=(0,), precisions=("fp32",)),
    Row(True, "exact", stages=(1, 2), precisions=("fp32", "bf16"), offload=True),
    Row(True, "exact", stages=(1,), precisions=("fp32",), partitioned=True),
    Row(True, "exact up to rounding", stages=(1,), precisions=("bf16",), partitioned=True, fp32_accumulation=True),
    Row(True, "exact up to rounding", stages=(1,), precisions=("bf16",), partitioned=True, fp32_accumulation=False),
    Row(True, "exact up to rounding", stages=(1,), precisions=("fp16",), partitioned=True),
    Row(True, "exact", stages=(1, 2, 3), precisions=("fp32",), partitioned=False),
    Row(
        True, "exact up to rounding", stages=(1, 2, 3), precisions=("bf16",), partitioned=False, fp32_accumulation=True
    ),
    Row(True, "exact up to rounding", stages=(1, 2), precisions=("bf16",), partitioned=False, fp32_accumulation=False),
    Row(True, "exact up to rounding", stages=(1, 2, 3), precisions=("fp16",), partitioned=False),
    Row(False, "no test has shown that this trains exactly", "use zero1_fp32 or zero1_bf16"),
)


def combination(
    settings: DeepSpeedSettings,
    *,
    placement: Placement | None,
    num_ranks: int,
    routed: bool,
    tensor: int = 1,
    spans_may_change: bool = False,
) -> Combination:
    """Describes a run; arguments as of :func:`check`."""
    layers = placement.layers if placement is not None and routed else ()
    partitioned = any(len(spans) > 1 for spans in layers)
    unsure = partitioned and spans_may_change
    return Combination(
        stage=settings.stage,
        precision=settings.precision,
        routed=routed,
        num_ranks=num_ranks,
        partitioned=partitioned,
        uniform=not unsure and all(len({len(span.blocks) for span in spans}) == 1 for spans in layers),
        symmetric=not unsure and all(len({len(span.task_groups) for span in spans}) == 1 for spans in layers),
        fp32_accumulation=settings.accumulation_dtype == "fp32",
        overlap_comm=settings.overlap_comm,
        offload=settings.offload,
        tensor=tensor > 1,
    )


def lookup(case: Combination) -> Row:
    """The first row that matches; the last row of the table catches everything."""
    return next(row for row in TABLE if row.matches(case))


def check(
    settings: DeepSpeedSettings,
    *,
    placement: Placement | None,
    num_ranks: int,
    routed: bool,
    tensor: int = 1,
    spans_may_change: bool = False,
) -> None:
    """Refuses a run that would not train exactly.

    Args:
        settings: DeepSpeed's.
        placement: Of the run; None for a dense model.
        num_ranks: Data ranks.
        routed: Whether the model has routed layers.
        tensor: Tensor ranks per data rank.
        spans_may_change: Task groups will be merged and placed anew: what only equal spans allow is refused now.

    Raises:
        ConfigError: With the row's reason and remedy.
    """
    case = combination(
        settings,
        placement=placement,
        num_ranks=num_ranks,
        routed=routed,
        tensor=tensor,
        spans_may_change=spans_may_change,
    )
    row = lookup(case)
    if not row.supported:
        given = [] if row.stages is not None else [f"ZeRO-{case.stage}", case.precision]
        raise ConfigError(
            f"{settings.source}: this combination is refused: {row.note}",
            got=", ".join(filter(None, [*given, row.conditions()])),
            expected="a supported row of docs/deepspeed.md",
            remedy=row.remedy,
        )


def markdown() -> str:
    """The table for ``docs/deepspeed.md``; the first row that matches decides."""
    lines = ["| combination | verdict | remedy |", "|---|---|---|"]
    for row in TABLE:
        verdict = f"supported: {row.note}" if row.supported else f"refused: {row.note}"
        lines.append(f"| {row.conditions()} | {verdict} | {row.remedy} |")
    return "\n".join(lines)
