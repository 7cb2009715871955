"""DeepSpeed's own checkpoint folder, written beside distmoe's for tools that read nothing else.

DeepSpeed's files fit one topology, are pickles, and know experts only as members of its own layer classes. distmoe
never reads them. Where every rank holds every tensor, DeepSpeed sees an ordinary data-parallel model, and its folder
is whole; where ranks hold different experts it would hold rank 0's alone, so that is refused before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distmoe.engine import compatibility
from distmoe.engine.ds_config import DeepSpeedSettings
from distmoe.errors import ConfigError


@dataclass(frozen=True)
class Arrangement:
    """What the table decides about."""

    stage: int
    routed: bool
    ep_size: int
    partitioned: bool
    offload: bool
    bf16_optimizer: bool


@dataclass(frozen=True)
class Row:
    """One line of the table; the first one whose condition holds decides."""

    arrangement: str
    holds: Callable[[Arrangement], bool]
    supported: bool
    note: str
    remedy: str = ""


TABLE: tuple[Row, ...] = (
    Row(
        "routed layers, `parallel.ep_size` > 1",
        lambda case: case.routed and case.ep_size > 1,
        False,
        "DeepSpeed writes the experts of its own layer classes only; rank 0's file would lack the other ranks' experts",
        "set parallel.ep_size=1, or checkpoint.format=distmoe",
    ),
    Row(
        "routed layers, `parallel.placement=partitioned`",
        lambda case: case.routed and case.partitioned,
        False,
        "ranks hold different task groups, and rank 0's file would lack the others'",
        "set parallel.placement=colocated, or checkpoint.format=distmoe",
    ),
    Row(
        "optimizer offload",
        lambda case: case.offload,
        False,
        "no test has shown that DeepSpeed reads it back",
        "use a file without offload_optimizer, or checkpoint.format=distmoe",
    ),
    Row("ZeRO-0", lambda case: case.stage == 0, True, "`load_checkpoint`"),
    Row(
        "ZeRO-3, routed layers",
        lambda case: case.stage == 3 and case.routed,
        False,
        "no test has shown that DeepSpeed reads it back",
        "use a ZeRO-1 or ZeRO-2 file, or checkpoint.format=distmoe",
    ),
    Row(
        "ZeRO-1, bf16, fp32 accumulation",
        lambda case: case.bf16_optimizer,
        True,
        "`load_checkpoint`; its `zero_to_fp32.py` does not know the files of its own bf16 optimizer",
    ),
    Row("ZeRO-1/2/3", lambda case: True, True, "`load_checkpoint` and `zero_to_fp32.py`"),
)


def check(settings: DeepSpeedSettings, *, routed: bool, ep_size: int, partitioned: bool) -> None:
    """Refuses an arrangement whose folder DeepSpeed could not read back.

    Raises:
        ConfigError: With the row's reason and remedy.
    """
    case = Arrangement(
        stage=settings.stage,
        routed=routed,
        ep_size=ep_size,
        partitioned=partitioned,
        offload=settings.offload,
        bf16_optimizer=settings.stage == 1 and settings.precision == "bf16" and settings.accumulation_dtype == "fp32",
    )
    row = next(row for row in TABLE if row.holds(case))
    if not row.supported:
        raise ConfigError(
            f"checkpoint.format=deepspeed is refused: {row.note}",
            got=f"{settings.source}: {row.arrangement.replace('`', '')}",
            expected="a supported row of the table in docs/checkpoints.md",
            remedy=row.remedy,
        )


def write(ds_engine: Any, root: Path, tag: str) -> Path:
    """Writes ``root/tag``, and its name into ``root/latest``; a collective that returns when all ranks have written.

    Args:
        ds_engine: DeepSpeed's engine, at a step border.
        root: What DeepSpeed calls ``save_dir``; ``zero_to_fp32.py`` is copied there.
        tag: Name of the checkpoint.
    """
    with compatibility.as_data_parallel(ds_engine):
        ds_engine.save_checkpoint(str(root), tag=tag)
    return Path(root) / tag


def markdown() -> str:
    """The table for ``docs/checkpoints.md``; the first row that matches decides."""
    lines = ["| arrangement | verdict | remedy |", "|---|---|---|"]
    for row in TABLE:
        verdict = f"written, read back by {row.note}" if row.supported else f"refused: {row.note}"
        lines.append(f"| {row.arrangement} | {verdict} | {row.remedy} |")
    return "\n".join(lines)
