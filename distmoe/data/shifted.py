"""Which runs can be scored under shift, and how much of longer texts ``data.max_length`` leaves."""

from __future__ import annotations

from collections.abc import Sequence

from distmoe.data.encoded import EncodedTasks
from distmoe.data.shift import Shift
from distmoe.data.sources.base import TaskSource
from distmoe.errors import ConfigError
from distmoe.log import get_logger
from distmoe.tasks import TaskSet

_logger = get_logger(__name__)


def check_shiftable(tasks: TaskSet, source: TaskSource) -> None:
    """Refuses tasks whose texts are answers at the same time, or that have token ids and no texts.

    Raises:
        ConfigError: Naming the tasks.
    """
    unfit = [
        spec.name
        for spec in tasks
        if spec.kind == "language_modeling" or source.indexed_sets(spec.name, "validation") is not None
    ]
    if unfit:
        raise ConfigError(
            "data.shifts changes texts and keeps answers, which some tasks do not have apart",
            got=", ".join(unfit),
            expected="tasks with texts, and labels or targets: no language modelling, no indexed sets",
            remedy="remove data.shifts, or leave these tasks out of tasks.names",
        )


def check_growth(tasks: TaskSet, encoded: EncodedTasks, shifts: Sequence[Shift], *, max_length: int) -> None:
    """Refuses longer texts of which nothing is left, and says where less than half of what was added is left.

    Raises:
        ConfigError: If no task's sequences become longer.
    """
    for shift in shifts:
        if shift.kind != "longer":
            continue
        pairs = zip(encoded.split("test"), encoded.split(shift.split), strict=True)
        growth = [float(shifted.lengths_N.sum()) / float(plain.lengths_N.sum()) - 1 for plain, shifted in pairs]
        if max(growth) <= 0:
            raise ConfigError(
                "data.shifts.longer adds words that are all cut again",
                got=f"data.shifts.longer=[{shift.strength:g}], data.max_length={max_length}",
                expected="room for longer sequences in one task or more",
                remedy="raise data.max_length (before training), or remove data.shifts.longer",
            )
        short = [(spec.name, own) for spec, own in zip(tasks, growth, strict=True) if own < (shift.strength - 1) / 2]
        if short:
            _logger.warning(
                "%s: texts get %.0f %% more words, but data.max_length=%d cuts sequences so that they grow less: %s",
                shift.name, 100 * (shift.strength - 1), max_length,
                ", ".join(f"{name} {100 * own:+.0f} %" for name, own in short),
            )  # fmt: skip
