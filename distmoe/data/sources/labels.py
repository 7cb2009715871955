"""Reads one raw label into a class id or a finite number; every source goes through it."""

from __future__ import annotations

import math
import re

from distmoe.errors import DataError
from distmoe.tasks import TaskSpec


def read_label(value: object, spec: TaskSpec, where: str) -> int | float:
    """Returns a class id (int) or a regression target (float).

    Class names win over ids: a class called "1" is found by its name. Digits that are no name are an id (CSV has no
    numbers).

    Args:
        value: What stands in the data.
        spec: The task that the label must fit.
        where: File and line, or split and row, for the message.

    Raises:
        DataError: If the label is missing, not finite, no class of the task, or out of range.
    """
    return _number(value, spec, where) if spec.is_regression else _class_id(value, spec, where)


def _class_id(value: object, spec: TaskSpec, where: str) -> int:
    if isinstance(value, str):
        if value in spec.labels:
            return spec.labels.index(value)
        digits = value.strip()
        if not re.fullmatch(r"-?[0-9]{1,18}", digits):  # int() refuses thousands of digits, and takes much else
            raise _misfit("label is no class of its task", value, spec, where)
        value = int(digits)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _misfit("label is neither a class name nor a class id", value, spec, where)
    if not 0 <= value < len(spec.labels):
        raise _misfit("label out of range", value, spec, where)
    return value


def _misfit(what: str, value: object, spec: TaskSpec, where: str) -> DataError:
    shown = " | ".join(f"{i} ({name})" for i, name in enumerate(spec.labels[:12]))
    more = f" | ... up to {len(spec.labels) - 1}" if len(spec.labels) > 12 else ""
    hidden = isinstance(value, int) and value < 0
    remedy = (
        "negative labels mark splits without answers (as in GLUE's test splits): leave the split out and "
        "validation is reported instead"
        if hidden
        else 'correct the row, or the "labels" of the task'
    )
    return DataError(f"task {spec.name!r}, {where}: {what}", got=repr(value), expected=shown + more, remedy=remedy)


def _number(value: object, spec: TaskSpec, where: str) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"task {spec.name!r}, {where}: label is not a finite number",
            got=repr(value),
            expected="a finite int or float",
            remedy="correct or remove the row",
        )
    return number
