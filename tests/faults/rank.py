"""One rank of a run that may be struck down: what :mod:`tests.faults.runs` forks.

A fork server has imported everything once; a run then starts in the time of its own set-up, not of torch's import.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# What a rank imports; forked with the server, never imported again.
PRELOAD = [
    "pytest",
    "deepspeed",
    "distmoe.train",
    "distmoe.recipes.loader",
    "distmoe.training.run",
    "tests.faults.rank",
]


@dataclass(frozen=True)
class Strike:
    """``kill -9`` of a rank by itself at an exact place: around the ``count``-th call of a function.

    Attributes:
        place: ``module:function`` or ``module:Class.method``, looked up where it is called.
        when: Before the call; after it; or, of a removal of folders, ``amid``: with half of the files gone.
        count: From 1, counted on the rank that is struck.
    """

    place: str
    when: Literal["before", "after", "amid"]
    count: int = 1

    def prepare(self) -> None:
        """Puts itself around the function; call it in the process that is to die."""
        module, _, path = self.place.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, self._around(getattr(owner, name)))

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        left = [self.count]

        def struck(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and self.when == "amid":
                files = sorted(path for path in Path(args[0]).rglob("*") if path.is_file())
                for path in files[: (len(files) + 1) // 2]:
                    path.unlink()
            if left[0] == 0 and self.when != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return struck


def run_rank(
    arguments: Sequence[str], folder: str, log: str, variables: Mapping[str, str], strike: Strike | None
) -> None:
    """Trains as ``python distmoe/train.py ARGUMENTS`` in ``folder``, with a rank's environment; does not return."""
    from distmoe import train

    os.setsid()  # a Ctrl-C for the tests is none for a rank that may be about to be killed otherwise
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.update(variables)
    sys.argv[:] = ["train.py", *arguments]
    if strike is not None:
        strike.prepare()
    train._leave(train.main(list(arguments)))
