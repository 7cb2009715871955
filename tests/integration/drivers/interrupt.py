"""Trains, and sends one rank a signal at an exact moment: ``interrupt.py MOMENT COUNT RANK SIGNAL ARGUMENTS...``.

Moments, each counted from 1 on the rank in question:

- ``backward``: after a micro-batch's gradient, in the middle of a step
- ``compare``: similarities of a structural phase are known, its plan is not made yet
- ``plan``: the plan is made, no checkpoint names it yet
- ``rename``: a checkpoint is written, its manifest too, but its folder does not have its name yet
- ``commit``: a checkpoint has its name
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
        owner, function = _place(moment)
        strike = _strike(int(count), signal.Signals[name])
        setattr(owner, function, _followed_by(getattr(owner, function), strike))
    train._leave(train.main(arguments))


def _place(moment: str) -> tuple[Any, str]:
    """The function after which it happens, and who owns it."""
    from distmoe.checkpoint.manifest import Manifest
    from distmoe.engine.engine import Engine
    from distmoe.training.checkpoints import Checkpoints
    from distmoe.training.structural import phases

    return {
        "backward": (Engine, "backward"),
        "compare": (phases, "_propose"),
        "plan": (phases, "_plan"),
        "rename": (Manifest, "write"),
        "commit": (Checkpoints, "save"),
    }[moment]


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
