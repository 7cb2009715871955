"""What a run has used of its data: three numbers that are easily taken for each other, and what they cost.

"Uses less data" can mean fewer distinct examples, fewer updates or less compute; a sampler that scores many candidates
and trains on few lowers the first and raises the last. Arms of structural trials count, also where they were undone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Cost of one example in forward passes: backward costs about two.
FORWARD, FORWARD_AND_BACKWARD = 1, 3


class SampleAccounts:
    """Counts over all ranks; every rank knows the whole step and counts the same.

    Args:
        sizes: Training examples of each task.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._seen = [np.zeros(size, dtype=np.bool_) for size in sizes]
        self._updates = [0] * len(sizes)
        self._scored = 0

    def trained(self, task_ids: npt.NDArray[np.int64], example_ids: npt.NDArray[np.int64]) -> None:
        """Adds examples of an optimizer step."""
        for task in np.unique(task_ids).tolist():
            examples = example_ids[task_ids == task]
            self._seen[task][examples] = True
            self._updates[task] += len(examples)

    def scored(self, count: int) -> None:
        """Adds candidates that a forward pass has looked at."""
        self._scored += count

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Distinct examples and their share, candidates scored, example-updates, and the cost of all in forwards."""
        distinct = [int(seen.sum()) for seen in self._seen]
        updates = sum(self._updates)
        return {
            "distinct": sum(distinct),
            "distinct_share": sum(distinct) / sum(len(seen) for seen in self._seen),
            "scored": self._scored,
            "updates": updates,
            "forward_equivalents": FORWARD * self._scored + FORWARD_AND_BACKWARD * updates,
            "tasks": {
                name: {"distinct": count, "distinct_share": count / len(seen), "updates": own}
                for name, count, seen, own in zip(names, distinct, self._seen, self._updates, strict=True)
            },
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values; one bit per training example."""
        return {
            "seen": [np.packbits(seen).tobytes().hex() for seen in self._seen],
            "updates": list(self._updates),
            "scored": self._scored,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from the counts of the same tasks and data."""
        for task, text in enumerate(state["seen"]):
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), count=len(self._seen[task]))
            self._seen[task] = bits.astype(np.bool_)
        self._updates, self._scored = list(state["updates"]), int(state["scored"])
