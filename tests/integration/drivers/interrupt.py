"""Trains, and sends one rank a signal at an exact moment: ``interrupt.py MOMENT COUNT RANK SIGNAL ARGUMENTS...``.

Moments, each counted from 1 on the rank in question:

- ``backward``: after a micro-batch's gradient, in the middle of a step
- ``rename``: a checkpoint is written, its manifest too, but its folder does not have its name yet
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from distmoe import train


def main() -> None:
    moment, count, rank, name, *arguments = sys.argv[1:]
    if os.environ["RANK"] == rank:
        strike = _strike(int(count), signal.Signals[name])
        if moment == "backward":
            from distmoe.engine.engine import Engine

            Engine.backward = _followed_by(Engine.backward, strike)
        else:
            from distmoe.checkpoint.manifest import Manifest

            Manifest.write = _followed_by(Manifest.write, strike)
    train._leave(train.main(arguments))


def _strike(count: int, number: signal.Signals) -> Callable[[], None]:
    left = [count]

    def strike() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)

    return strike


def _followed_by(function: Callable[..., Any], then: Callable[[], None]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        then()
        return result

    return wrapped


if __name__ == "__main__":
    main()
