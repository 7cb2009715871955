"""The one record that stands between any raw data set and any model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TaskExample:
    """One example of one task, before tokenization.

    Attributes:
        text: First (or only) text.
        text_pair: Second text of a pair task, else None.
        label: Class id (int) or regression target (float); checked by :func:`distmoe.data.sources.labels.read_label`.
    """

    text: str
    text_pair: str | None
    label: int | float
