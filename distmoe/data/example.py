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
            0 where answers are tokens.
        target: The answer to learn, of a generation task.
        references: Answers that are right, for scores of generated text; at least the target.
    """

    text: str
    text_pair: str | None
    label: int | float
    target: str | None = None
    references: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts that are turned into tokens."""
        return tuple(text for text in (self.text, self.text_pair, self.target) if text is not None)
