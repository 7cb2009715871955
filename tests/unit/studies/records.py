"""Records of runs that never were."""

from __future__ import annotations

from typing import Any


def record(arm: str, seed: int, *scores: float, forward_equivalents: int = 600) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "recipe": "demo",
        "runs": {f"{arm}-{seed}": []},
        "tasks": {f"t{index}": score for index, score in enumerate(scores)},
        "metrics": {f"t{index}": "accuracy" for index in range(len(scores))},
        "steps": 10,
        "best_step": 10,
        "seconds": 2.0,
        "parameters": 1000,
        "trained": 600,
        "samples": {
            "distinct": 50, "distinct_share": 0.5, "scored": 0, "updates": 200,
            "forward_equivalents": forward_equivalents,
        },
    }  # fmt: skip


def by_place(*records: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(one["arm"], one["seed"]): one for one in records}
