"""The sign of life that a rank leaves in the store, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from distmoe.parallel.watch.whereabouts import Position


@dataclass(frozen=True)
class Failure:
    """Why a rank cannot go on.

    Attributes:
        kind: ``cause``: an exception of its own; ``symptom``: a collective failed, because of another rank or a link.
        text: The message; of a cause in four parts.
        code: Exit code.
    """

    kind: Literal["cause", "symptom"]
    text: str
    code: int


@dataclass(frozen=True)
class Sign:
    """What a rank says of itself.

    Attributes:
        rank: Who.
        host: Name of its machine.
        beat: Grows with every sign.
        position: Where it is.
        waited: Seconds since it got there, by its own clock.
        failure: Set when it cannot go on.
        left: It has ended in order, or is about to end with the others.
    """

    rank: int
    host: str
    beat: int = 0
    position: Position = field(default_factory=Position)
    waited: float = 0.0
    failure: Failure | None = None
    left: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | bytes) -> Sign:
        values = json.loads(text)
        failure = values.pop("failure")
        position = Position(**values.pop("position"))
        return Sign(**values, position=position, failure=None if failure is None else Failure(**failure))
