"""Logging that knows its rank.

Library modules call :func:`get_logger`; only an entry point calls :func:`configure`, once.
"""

from __future__ import annotations

import logging
import os
import sys

_ROOT = "distmoe"


def get_logger(name: str) -> logging.Logger:
    """Returns the logger of a module; ``name`` is its ``__name__``."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def own_rank() -> int:
    """Rank of this process before anything else has read the environment; below srun only Slurm's name is set."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def first_of_machine() -> bool:
    """Whether this process is the first rank of its machine, as the launcher numbered them."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def configure(level: int | str = logging.INFO) -> None:
    """Sends distmoe's records to stderr; ranks other than 0 show warnings and errors only."""
    rank = own_rank()
    handler = logging.StreamHandler(sys.stderr)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(levelname).1s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger(_ROOT)
    logger.handlers[:] = [handler]
    logger.setLevel(
        level if rank == 0 else max(logging.WARNING, logging.getLevelName(level) if isinstance(level, str) else level)
    )
    logger.propagate = False
