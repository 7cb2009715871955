"""Ranks watch each other through the store, beside training: no collective, no cost per step.

Every second each rank leaves its :class:`Sign` in the TCP store that the ranks met at. Rank 0 reads them all, judges,
and prints the one message; the others read the verdict and end silently. Who judges when rank 0 cannot:

=========================================  ========================================================================
rank 0 has                                 then
=========================================  ========================================================================
raised an exception, is stuck              its thread judges all the same
died, and the store with it                every rank sees the connection close; one of another host says so
been stopped, or is cut off                the store does not answer for ``silence`` seconds; the same
died or been stopped, store in an agent    the others see its sign stand still; the first of them says so
=========================================  ========================================================================

A rank that cannot run Python any more is ended by its :class:`Guardian`. The store is a connection of its own (a
clone), so that a rank that waits for a key elsewhere still gives signs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn

import torch.distributed as dist

from distmoe.errors import DistmoeError, ParallelError, RunEnded
from distmoe.log import get_logger
from distmoe.parallel.env import RankEnv
from distmoe.parallel.watch.guardian import Guardian
from distmoe.parallel.watch.judge import FAILED, GRACE, Judge, Verdict
from distmoe.parallel.watch.sign import Failure, Sign
from distmoe.parallel.watch.whereabouts import Whereabouts

_log = get_logger(__name__)

USER_ERROR = 2
_TICK = 1.0  # seconds
_PREFIX, _VERDICT, _NONE = "distmoe/watch/", "distmoe/watch/verdict", "none"
_DEPUTY = "distmoe/watch/deputy"
_LINGER = 3.0  # seconds that rank 0, which holds the store, waits for the others to have read the verdict
_OF_BACKENDS = ("gloo", "nccl", "connection closed", "connection reset", "process group", "pair closure")


class Watch:
    """Context of a run; alone, a rank is not watched. Entering is a collective.

    Leaving it with an exception raises :class:`RunEnded` instead: by then one rank has said why the job ends.

    Args:
        env: This rank.
        silence_seconds: A rank that gives no sign for so long ends the job.
        timeout_minutes: Of collectives.
        explain: Turns an exception of a backend into a user error where it is one (``guard.explain``).
    """

    def __init__(
        self,
        env: RankEnv,
        *,
        silence_seconds: float,
        timeout_minutes: float,
        explain: Callable[[BaseException], DistmoeError | None] = lambda error: None,
    ) -> None:
        self.whereabouts = Whereabouts()
        self._env, self._explain = env, explain
        self._silence = max(GRACE, math.ceil(silence_seconds))
        # A little before the backend's own time-out, after which NCCL ends the process without a word.
        self._judge = Judge(silence=self._silence, patience=0.9 * 60 * timeout_minutes)
        self._sign = Sign(env.rank, socket.gethostname())
        self._since = (0, time.monotonic())  # moves, and when they were reached
        self._failure: Failure | None = None
        self._wake, self._closed, self._judged = threading.Event(), threading.Event(), threading.Event()
        self._verdict: Verdict | None = None
        self._rounds = 0
        self._main_waits = False
        self._speaks = True  # whether this rank prints when the store is gone
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Watch:
        if self._env.world_size == 1:
            return self
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = store.clone()
        self._store.set(self._key(self._env.rank), self._sign.to_json())
        if self._env.rank == 0:
            self._store.set(_VERDICT, _NONE)
        dist.barrier()
        self._first = Sign.from_json(self._store.get(self._key(0)))
        if self._env.rank == 0:  # once for all: ranks must not differ, and nobody else need read every sign
            keys = [self._key(rank) for rank in range(self._env.world_size)]
            hosts = [Sign.from_json(text).host for text in self._store.multi_get(keys)]
            self._store.set(_DEPUTY, str(_deputy(hosts)))
        self._speaks = self._env.rank == int(self._store.get(_DEPUTY))
        self._guardian = Guardian(limit=self._silence + GRACE)
        self._start(self._beat)
        self._start(self._look_after)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._env.world_size == 1 or isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._closed.set()
            return
        if error is None:
            self._close()
            return
        self._failure = self._failure_of(error)
        self._main_waits = True
        self._wake.set()
        # The judge needs its grace, and other ranks need theirs to notice.
        self._judged.wait(self._silence + 4 * GRACE)
        verdict = self._verdict or Verdict(self._failure.text, self._failure.code)
        if self._verdict is None:
            _say(verdict)
        self._close()
        raise RunEnded(verdict.code) from None

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=f"distmoe-watch{target.__name__}", daemon=True)
        thread.start()
        self._threads.append(thread)

    # The thread that talks to the store; it may block there.

    def _beat(self) -> None:
        while not self._closed.is_set():
            try:
                verdict = self._round()
            except (RuntimeError, OSError) as lost:
                if not self._closed.is_set():
                    self._lose(f"the store does not answer: {_first_line(lost)}")
                return
            if verdict is not None:
                self._carry_out(verdict)
                return
            self._wake.wait(_TICK)
            self._wake.clear()

    def _round(self) -> Verdict | None:
        """One sign, and the verdict if there is one by now."""
        self._store.set(self._key(self._env.rank), self._next_sign().to_json())
        known = self._store.get(_VERDICT).decode()
        if known != _NONE:
            return _from_wire(known)
        if self._env.rank == 0:
            keys = [self._key(rank) for rank in range(self._env.world_size)]
            own = self._judge.tick([Sign.from_json(text) for text in self._store.multi_get(keys)])
        else:  # rank 0 judges all; the others see whether it still does
            self._first = Sign.from_json(self._store.get(self._key(0)))
            own = self._judge.tick([replace(self._first, failure=None, waited=0.0)])
        self._rounds += 1
        if own is None:
            return None
        # Several ranks may have judged: the first one's word counts, and it alone speaks.
        mine = _to_wire(own, by=self._env.rank)
        agreed = self._store.compare_set(_VERDICT, _NONE, mine).decode()
        if agreed == mine:
            _say(own)
        return _from_wire(agreed)

    def _next_sign(self) -> Sign:
        position, now = self.whereabouts.position, time.monotonic()
        if position.moves != self._since[0]:
            self._since = (position.moves, now)
        self._sign = replace(
            self._sign, beat=self._sign.beat + 1, position=position, waited=now - self._since[1], failure=self._failure
        )
        return self._sign

    def _carry_out(self, verdict: Verdict) -> None:
        self._verdict = verdict
        try:
            self._store.set(self._key(self._env.rank), replace(self._next_sign(), left=True).to_json())
            if self._env.rank == 0:
                self._linger()
        except (RuntimeError, OSError) as lost:
            _log.debug("the store went while the job ended: %s", lost)
        self._judged.set()
        if not self._main_waits:
            _end(verdict.code)

    def _linger(self) -> None:
        """The store is in this process: the others must have read the verdict before it ends."""
        keys = [self._key(rank) for rank in range(self._env.world_size)]
        end = time.monotonic() + _LINGER
        while time.monotonic() < end and not all(Sign.from_json(text).left for text in self._store.multi_get(keys)):
            time.sleep(0.1)

    # The thread that never blocks.

    def _look_after(self) -> None:
        """Feeds the guardian, and notices when the other thread gets no answer from the store."""
        rounds, quiet = -1, 0
        while not self._closed.wait(_TICK):
            self._guardian.feed()
            quiet = 0 if self._rounds != rounds or self._judged.is_set() else quiet + 1
            rounds = self._rounds
            if quiet >= self._silence:
                self._lose(f"no answer of the store for {quiet} s")
                return

    def _lose(self, why: str) -> None:
        """Rank 0, which holds the store, is gone or out of reach; nothing can be agreed upon any more."""
        error = ParallelError(
            f"rank 0 on {self._first.host}, where the ranks meet, died, hangs or cannot be reached",
            got=f"{why}; last seen: rank 0 in {self._first.position}; asked by rank {self._env.rank} on "
            f"{self._sign.host} in {self.whereabouts.position}",
            expected=f"an answer of {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} within "
            f"{self._silence} s (parallel.silence_seconds)",
            remedy="look at the log and the machine of rank 0: out of memory, hardware, network; the same command "
            "goes on from the last checkpoint",
        )
        self._verdict = Verdict(str(error), FAILED)
        if self._speaks:
            _say(self._verdict)
        self._judged.set()
        if not self._main_waits:
            _end(self._verdict.code)

    # The thread of the training.

    def _failure_of(self, error: BaseException) -> Failure:
        error = self._explain(error) or error
        if isinstance(error, DistmoeError):
            return Failure("cause", str(error), USER_ERROR)
        where = f"rank {self._env.rank} on {self._sign.host}"
        if _is_symptom(error):
            return Failure("symptom", f"{_first_line(error)} at {where}", FAILED)
        traceback.print_exception(error)
        cause = ParallelError(
            f"{where} failed in {self.whereabouts.position}",
            got=f"{type(error).__name__}: {_first_line(error)}",
            expected="no exception; its traceback is in the log of this rank",
            remedy="the same command goes on from the last checkpoint",
        )
        return Failure("cause", str(cause), FAILED)

    def _close(self) -> None:
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(timeout=_LINGER)
        if self._verdict is None:
            with contextlib.suppress(RuntimeError, OSError):  # too late to matter
                self._store.set(self._key(self._env.rank), replace(self._next_sign(), left=True).to_json())
        self._guardian.dismiss()
        self._threads.clear()

    def _key(self, rank: int) -> str:
        return f"{_PREFIX}{rank}"


def _deputy(hosts: Sequence[str]) -> int:
    """Who speaks when rank 0 is gone: the first rank of another machine, which may outlive rank 0's, or rank 1.

    Args:
        hosts: Of every rank.
    """
    return next((rank for rank, host in enumerate(hosts) if host != hosts[0]), 1)


def _is_symptom(error: BaseException) -> bool:
    """Whether a collective failed, which another rank or the network is to blame for."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _OF_BACKENDS)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _to_wire(verdict: Verdict, *, by: int) -> str:
    return json.dumps({"text": verdict.text, "code": verdict.code, "by": by})


def _from_wire(text: str) -> Verdict:
    values = json.loads(text)
    return Verdict(values["text"], values["code"])


def _say(verdict: Verdict) -> None:
    """In one write: lines of several ranks share one stream."""
    sys.stderr.write(f"error: {verdict.text}\n")
    sys.stderr.flush()


def _end(code: int) -> NoReturn:
    """Ends this process from beside its main thread, which sits in a collective that will not return."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
