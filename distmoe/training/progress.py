"""What a person sees while a run trains: a bar on a terminal, plain lines in a file."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from distmoe.log import get_logger

_log = get_logger(__name__)


class Progress:
    """Shows steps on rank 0; silent elsewhere.

    Args:
        num_steps: Steps of the run.
        start: Steps that are done already (resume).
        rank: Only rank 0 shows anything.
        interactive: Whether to draw a bar; default: whether stderr is a terminal.
    """

    def __init__(self, num_steps: int, *, start: int = 0, rank: int = 0, interactive: bool | None = None) -> None:
        self._num_steps, self._rank, self._start = num_steps, rank, start
        interactive = sys.stderr.isatty() if interactive is None else interactive
        self._bar: Any = None
        if rank == 0 and interactive:
            self._bar = tqdm(total=num_steps, initial=start, unit="step", dynamic_ncols=True)
        self._began = time.monotonic()

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def log(self, step: int, *, loss: float, lr: float, tokens_per_second: float) -> None:
        """Reports the last window."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", lr=f"{lr:.2e}", tok_s=f"{tokens_per_second:,.0f}")
        elif self._rank == 0:
            per_step = (time.monotonic() - self._began) / max(1, step - self._start)
            left = duration(per_step * (self._num_steps - step))
            _log.info(
                "step %d/%d  loss %.4f  lr %.2e  %s tokens/s  %s left",
                step,
                self._num_steps,
                loss,
                lr,
                f"{tokens_per_second:,.0f}",
                left,
            )

    def say(self, text: str) -> None:
        """Writes a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self._rank == 0:
            _log.info("%s", text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """``75`` -> ``1m15s``; ``7260`` -> ``2h01m``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
