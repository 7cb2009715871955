"""Who is to blame: a pure function of the signs of life, one tick (about a second) after the other.

Ticks are counted, not seconds: a job that was suspended as a whole (``scontrol suspend``, Ctrl-Z) goes on unharmed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distmoe.errors import ParallelError
from distmoe.parallel.watch.sign import Sign
from distmoe.parallel.watch.whereabouts import STEP_PHASES

GRACE = 5  # ticks after a broken connection until ranks that say nothing count as dead
FAILED = 1  # exit code of a run that failed through no wrong input
_SHOWN = 8
_TIMED_OUT = ("timed out", "timeout")
_RESUME = "the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class Verdict:
    """Why the job ends.

    Attributes:
        text: The one message, in four parts.
        code: Exit code of every rank.
    """

    text: str
    code: int = FAILED


class Judge:
    """Sees the signs of ``ranks`` once per tick.

    Args:
        silence: Ticks without a new sign after which a rank counts as dead, hanging or cut off.
        patience: Seconds that all ranks may stay where they are in the middle of a step.
    """

    def __init__(self, *, silence: int, patience: float) -> None:
        self._silence, self._patience = silence, patience
        self._beats: dict[int, int] = {}
        self._quiet: dict[int, int] = {}
        self._since_symptom = 0

    def tick(self, signs: Sequence[Sign]) -> Verdict | None:
        """The verdict, if there is one now."""
        for sign in signs:
            known = self._beats.get(sign.rank)
            self._quiet[sign.rank] = 0 if known != sign.beat or sign.left else self._quiet[sign.rank] + 1
            self._beats[sign.rank] = sign.beat
        causes = [sign for sign in signs if sign.failure is not None and sign.failure.kind == "cause"]
        if causes:
            first = causes[0].failure
            assert first is not None
            return Verdict(first.text, first.code)
        symptoms = [sign for sign in signs if sign.failure is not None]
        self._since_symptom += bool(symptoms)
        limit = GRACE if self._since_symptom >= GRACE else self._silence
        silent = [sign for sign in signs if self._quiet[sign.rank] >= min(limit, self._silence)]
        if silent:
            return self._dead(silent, signs)
        if self._since_symptom > GRACE:
            return self._broken(symptoms, signs)
        return self._stuck(signs)

    def _dead(self, silent: Sequence[Sign], signs: Sequence[Sign]) -> Verdict:
        others = [sign for sign in signs if sign not in silent]
        quiet = max(self._quiet[sign.rank] for sign in silent)
        return _verdict(
            f"{_who(silent)} died, hangs or cannot be reached",
            got=f"no sign of life for {quiet} s; last seen: {_where(silent)}{_waiting(others)}",
            expected=f"a sign of every rank at least every {self._silence} s (parallel.silence_seconds)",
            remedy=f"look at the log and the machine of {_who(silent)}: out of memory, hardware, network; {_RESUME}",
        )

    def _broken(self, symptoms: Sequence[Sign], signs: Sequence[Sign]) -> Verdict:
        """A collective failed though all ranks live: somebody did not come to it, or a connection broke."""
        text = symptoms[0].failure.text if symptoms[0].failure is not None else ""
        absent = _behind(signs)
        if absent and any(word in text.lower() for word in _TIMED_OUT):
            return self._absent(absent, signs, text)
        return _verdict(
            f"the connection of {_who(symptoms[:1])} to another rank broke, though all ranks are alive",
            got=f"{text}; {_where(symptoms[:1])}{_waiting([one for one in signs if one not in symptoms[:1]])}",
            expected="a network that carries every message",
            remedy=f"look at the network of {symptoms[0].host}; {_RESUME}",
        )

    def _stuck(self, signs: Sequence[Sign]) -> Verdict | None:
        """All ranks stand still in a step: some backends would end the process without a word at their time-out."""
        active = [sign for sign in signs if not sign.left]
        if not active or any(sign.waited < self._patience or not _in_step(sign) for sign in active):
            return None
        return self._absent(_behind(active) or active[:1], active, f"no rank moved for {active[0].waited:.0f} s")

    def _absent(self, absent: Sequence[Sign], signs: Sequence[Sign], text: str) -> Verdict:
        others = [sign for sign in signs if sign not in absent]
        return _verdict(
            f"{_who(absent)} did not come to a collective that other ranks wait in",
            got=f"{text}; {_where(absent)}{_waiting(others)}",
            expected="every rank at the same collective within parallel.timeout_minutes",
            remedy=f"see what keeps {_who(absent)} there (disk, data; parallel.guard=true names a rank that goes its "
            f"own way); {_RESUME}",
        )


def _verdict(what: str, *, got: str, expected: str, remedy: str) -> Verdict:
    return Verdict(str(ParallelError(what, got=got, expected=expected, remedy=remedy)))


def _who(signs: Sequence[Sign]) -> str:
    """``rank 3 on node2``, ``ranks 2 3 on node2``, ``ranks 0 on node1, 2 3 on node2``."""
    by_host: dict[str, list[str]] = {}
    for sign in signs[:_SHOWN]:
        by_host.setdefault(sign.host, []).append(str(sign.rank))
    more = f" and {len(signs) - _SHOWN} more" if len(signs) > _SHOWN else ""
    places = ", ".join(f"{' '.join(ranks)} on {host}" for host, ranks in by_host.items())
    return f"rank{'' if len(signs) == 1 else 's'} {places}{more}"


def _where(signs: Sequence[Sign]) -> str:
    """Positions, each once."""
    by_place: dict[str, list[Sign]] = {}
    for sign in signs:
        by_place.setdefault(str(sign.position), []).append(sign)
    return "; ".join(f"{_who(at)} in {place}" for place, at in by_place.items())


def _waiting(others: Sequence[Sign]) -> str:
    """Where the furthest of the others is: it waits for those that are to blame."""
    alive = [sign for sign in others if not sign.left]
    if not alive:
        return ""
    return f"; waiting for it: {_where([max(alive, key=lambda sign: sign.position.moves)])}"


def _behind(signs: Sequence[Sign]) -> list[Sign]:
    """Ranks that have passed fewer places than the furthest one; empty if all are equally far."""
    active = [sign for sign in signs if not sign.left]
    least, most = (pick(sign.position.moves for sign in active) for pick in (min, max))
    return [] if least == most else [sign for sign in active if sign.position.moves == least]


def _in_step(sign: Sign) -> bool:
    return sign.failure is None and sign.position.phase in STEP_PHASES
