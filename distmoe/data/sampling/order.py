"""The order of a task's examples: endless epochs, each a keyed permutation, so that no state but a count is needed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from distmoe.seed import numpy_generator


class ExampleOrder:
    """Draws without replacement from one task, epoch after epoch.

    Args:
        size: Examples of the task.
        seed: The run's seed.
        task_id: Names the task's stream.
    """

    def __init__(self, size: int, *, seed: int, task_id: int) -> None:
        self._size, self._seed, self._task_id = size, seed, task_id
        self._epoch, self._permutation = -1, np.zeros(0, dtype=np.int64)

    def take(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Examples at the places ``first .. first + count - 1`` of the endless order; a pure function of them."""
        taken, place, end = [np.zeros(0, dtype=np.int64)], first, first + count
        while place < end:
            epoch, offset = divmod(place, self._size)
            taken.append(self._of_epoch(epoch)[offset : offset + end - place])
            place += len(taken[-1])
        return np.concatenate(taken)

    def _of_epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch:
            rng = numpy_generator(self._seed, "example order", self._task_id, epoch)
            self._epoch, self._permutation = epoch, rng.permutation(self._size)
        return self._permutation
