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
        "shifts": {"noise_0.1": _lower(scores, 0.1), "drop_0.2": _lower(scores, 0.2 if arm == "C" else 0.1)},
        "seconds": 2.0,
        "parameters": 1000,
        "trained": 600,
        "samples": {
            "distinct": 50, "distinct_share": 0.5, "scored": 0, "updates": 200,
            "forward_equivalents": forward_equivalents,
        },
    }  # fmt: skip


def _lower(scores: tuple[float, ...], loss: float) -> dict[str, Any]:
    lower = [score - loss for score in scores]
    return {"macro": sum(lower) / len(lower), "tasks": {f"t{index}": score for index, score in enumerate(lower)}}


def by_place(*records: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(one["arm"], one["seed"]): one for one in records}
