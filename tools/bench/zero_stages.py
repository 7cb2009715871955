"""What each ZeRO stage sends and takes per training step, task-routed and dense, and why ZeRO-3 costs what it costs.

::

    python tools/bench/zero_stages.py                     # 2 gloo ranks
    python tools/bench/zero_stages.py --quick --json OUT.json

Collectives are counted where they are handed to torch: calls, and the bytes that a rank sends if each runs as a ring of
its P ranks. All-to-alls of experts are not there: each rank holds every expert here. Wall time between barriers,
engines built anew in every round, all of them in each; medians. "Held" is what the rank keeps between two steps:
weights, master weights and moments, by the sizes of their storages.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hosted import Arm, Size, make_arm, on_ranks, seconds

# Name of the tensor, whole or (reduce-scatter) one rank's part of it, and how many times (P - 1)/P of it a ring sends.
COUNTED: dict[str, tuple[str, Callable[[int], int]]] = {
    "all_reduce": ("tensor", lambda ranks: 2),
    "reduce": ("tensor", lambda ranks: 1),
    "broadcast": ("tensor", lambda ranks: 1),
    "all_gather_into_tensor": ("output_tensor", lambda ranks: 1),
    "reduce_scatter_tensor": ("output", lambda ranks: ranks),
    "all_gather": ("tensor_list", lambda ranks: 1),
}
NO_PREFETCH = {"stage3_prefetch_bucket_size": 0}
# Whole parameters are persistent (never cut) below a threshold; at this size it would be all of them.
CUT = {"stage3_param_persistence_threshold": 0}


class Collectives:
    """Counts torch's collectives by name while it is on."""

    def __init__(self) -> None:
        self.on, self.calls, self.bytes = False, Counter[str](), Counter[str]()
        for name in COUNTED:
            setattr(dist, name, self._counting(name, getattr(dist, name)))

    def _counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        argument, times = COUNTED[name]

        def counted(*args: Any, **values: Any) -> Any:
            if self.on:
                found = args[0] if args else values[argument]
                tensors = found if isinstance(found, list) else [found]
                ranks = dist.get_world_size(values.get("group"))
                size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
                self.calls[name] += 1
                self.bytes[name] += size * times(ranks) * (ranks - 1) // ranks
            return function(*args, **values)

        return counted


def measure(counted: Collectives, size: Size, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Every arm in every round."""
    arms: dict[str, tuple[Size, dict[str, Any]]] = {}
    for kind, shape in (("task-routed", size), ("dense", replace(size, experts=0))):
        arms[f"{kind}, ZeRO-1"] = shape, {"stage": 1}
        arms[f"{kind}, ZeRO-2"] = shape, {"stage": 2}
        arms[f"{kind}, ZeRO-3, no prefetch"] = shape, {"stage": 3} | CUT | NO_PREFETCH
    arms["dense, ZeRO-3, DeepSpeed's prefetch"] = replace(size, experts=0), {"stage": 3} | CUT
    rows: dict[str, dict[str, Any]] = {name: {"arm": name, "times": []} for name in arms}
    for _ in range(rounds):
        for name, (shape, zero) in arms.items():
            arm = make_arm(shape, zero)
            for _ in range(2):  # the first steps make states and record ZeRO-3's order of modules
                arm.step()
            counted.calls.clear()
            counted.bytes.clear()
            counted.on = True
            arm.step()
            counted.on = False
            rows[name] |= {"calls": dict(counted.calls), "bytes": dict(counted.bytes), "held": _held(arm)}
            rows[name]["times"] += [seconds(arm.step) for _ in range(steps)]
            arm.destroy()
    return [row | {"seconds": statistics.median(row.pop("times"))} for row in rows.values()]


def _held(arm: Arm) -> int:
    """Bytes of weights, master weights and moments on this rank; each storage once."""
    tensors = [getattr(parameter, "ds_tensor", parameter) for parameter in arm.engine.module.parameters()]
    tensors += [fragment.data for fragment in arm.engine.fragments()]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def print_table(rows: list[dict[str, Any]]) -> None:
    print("| arm | collectives | of them gathers | MB sent | step | held |")
    print("|---|--:|--:|--:|--:|--:|")
    for row in rows:
        kind = row["arm"].split(",")[0]
        floor = next(one for one in rows if one["arm"] == f"{kind}, ZeRO-1")
        gathers = sum(count for name, count in row["calls"].items() if "gather" in name)
        print(
            f"| {row['arm']} | {sum(row['calls'].values())} | {gathers} | {sum(row['bytes'].values()) / 1e6:.1f} "
            f"| {row['seconds'] / floor['seconds']:.2f} | {row['held'] / floor['held']:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    args = parser.parse_args()
    size = Size(width=64, layers=2, experts=4) if args.quick else Size(width=192, layers=4, experts=8)
    rounds, steps = (1, 1) if args.quick else (args.rounds, args.steps)
    rows = on_ranks(measure, args.ranks, size, rounds, steps, prepare=Collectives)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"torch {torch.__version__}, {where}, {args.ranks} ranks, fp32, {size}, {rounds} rounds, load {load}\n")
    print_table(rows)
    if args.json:
        values = {"torch": torch.__version__, "device": where, "ranks": args.ranks, "load": load, "rows": rows}
        args.json.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
