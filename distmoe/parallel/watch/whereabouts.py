"""Where a rank is: step, phase, and the collective that it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from distmoe.parallel.exchange_call import ExchangeCall

# Phases of a training step, in their order; in brackets what DeepSpeed makes collectives for.
FORWARD, BACKWARD = "forward pass", "backward pass (gradient reduction)"
BORDER, UPDATE = "step border (all-reduce)", "optimizer step (gradient reduction, weight gather)"
STEP_PHASES = (FORWARD, BACKWARD, BORDER, UPDATE)


@dataclass(frozen=True)
class Position:
    """One place in the sequence that all ranks run through.

    Attributes:
        phase: What the rank is doing; names the collectives of the phase where DeepSpeed makes them.
        step: Optimizer steps done; None before training.
        collective: The all-to-all that it has entered and not left; empty otherwise.
        moves: Places passed so far. All ranks pass the same ones, so the rank with the fewest is behind.
    """

    phase: str = "starting"
    step: int | None = None
    collective: str = ""
    moves: int = 0

    def __str__(self) -> str:
        parts = [] if self.step is None else [f"step {self.step}"]
        return ", ".join([*parts, self.phase, *([self.collective] if self.collective else [])])


class Whereabouts:
    """The position of this rank: written by training, read by the watch's thread.

    A position is replaced as a whole, which needs no lock. It costs a few microseconds per step and exchange.
    """

    def __init__(self) -> None:
        self.position = Position()

    def at(self, phase: str, *, step: int | None = None) -> None:
        """Enters a phase; without ``step``, that of the phase before."""
        now = self.position
        self.position = Position(phase, now.step if step is None else step, "", now.moves + 1)

    @contextmanager
    def exchange(self, call: ExchangeCall) -> Iterator[None]:
        """Names an exchange while it is under way. One that fails stays named: it is where the rank was."""
        before = self.position
        self.position = replace(before, collective=str(call), moves=before.moves + 1)
        yield
        self.position = replace(before, moves=before.moves + 2)
