"""The mixture: how often each task is drawn. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distmoe.data.config import SamplingConfig
from distmoe.errors import ConfigError


def mixture_weights(sizes: Sequence[int], config: SamplingConfig, *, names: Sequence[str]) -> list[float]:
    """Returns each task's share of the training examples, summing to 1.

    ``size_proportional``: n_t; ``temperature``: n_t ** (1 / temperature); ``uniform`` and ``round_robin``: equal.
    ``uncertainty``: equal too, in candidates; which of them are trained the model decides. A task that is not among
    ``tasks`` has no share.

    Args:
        sizes: Training examples of each task, all positive.
        config: Strategy, temperature and which tasks are trained.
        names: Of the tasks.

    Raises:
        ConfigError: If a task is to be trained that does not exist.
    """
    exponent = {"size_proportional": 1.0, "temperature": 1.0 / config.temperature}
    raw = np.asarray(sizes, dtype=np.float64) ** exponent.get(config.strategy, 0.0)
    if config.tasks is not None:
        if unknown := set(config.tasks) - set(names):
            raise ConfigError(
                "data.sampling.tasks names tasks that the run does not have",
                got=" | ".join(sorted(unknown)),
                expected=" | ".join(names),
                remedy="correct data.sampling.tasks, or set it to null to train all tasks",
            )
        raw *= [name in config.tasks for name in names]
    return [float(share) for share in raw / raw.sum()]


def draw_tasks(shares: Sequence[float], count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draws ``count`` positions of ``shares``, in random order.

    Systematic sampling: one random offset u, then the points (u + i) / count of the cumulated shares. Position t is
    drawn ``count * shares[t]`` times in expectation, like independent draws, but never off by 1 or more; so a rare
    task is not starved by chance.

    Args:
        shares: Non-negative, with a positive sum; normalised here.
        count: Draws.
        rng: Its state decides everything.
    """
    cumulated = np.cumsum(np.asarray(shares, dtype=np.float64))
    points = (rng.random() + np.arange(count)) / count * cumulated[-1]
    # Rounding may put the last point on the last border: it belongs to the last task with a share.
    drawn = np.minimum(np.searchsorted(cumulated, points, side="right"), np.flatnonzero(np.asarray(shares))[-1])
    return rng.permutation(drawn)


def deal_in_turn(num_tasks: int, count: int, first: int) -> npt.NDArray[np.int64]:
    """The ``round_robin`` draws ``first .. first + count - 1`` of an endless 0, 1, .., num_tasks - 1, 0, 1, .."""
    return (first + np.arange(count)) % num_tasks
