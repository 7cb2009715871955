"""Exact bytes and messages of the all-to-alls of one routed layer, on spawned gloo ranks.

::

    python tools/bench/all_to_all.py                    # 4 ranks
    python tools/bench/all_to_all.py --ranks 8 --json OUT.json

Everything is an integer read from split lists: no clock, no tolerance. Two questions are answered:

* What does one all-to-all *per task group* save over a global one? ``global``: all ranks are one block and hold all
  task groups. ``per task group``: each task group has its own ranks. Same experts, same tokens, same routes.
* What does *de-duplication* save? Rows per token are then ``R(P) = P (1 - C(E - E/P, K) / C(E, K))`` at most instead
  of K, for a balanced load; a skewed one travels less.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distmoe.moe.dispatch import Exchange, SlotLayout, build_dispatcher
from distmoe.parallel.placement import Placement, place
from distmoe.parallel.process_groups import create
from distmoe.parallel.traffic import TrafficCounter
from distmoe.tasks import TaskGrouping

FLOAT32 = 4
KINDS = ("counts", "tokens", "pairs", "outputs")


@dataclass(frozen=True)
class Case:
    """One routed layer and how it is spread.

    Attributes:
        name: Row of the table.
        num_task_groups: Task groups; each has ``num_experts`` / this many experts.
        per_task_group: Whether each task group's all-to-all stays on its own ranks.
        deduplicate: One row per (token, rank).
        skew: 0: routes are uniform; larger: more to the first experts.
    """

    name: str
    num_task_groups: int = 1
    per_task_group: bool = False
    deduplicate: bool = False
    top_k: int = 2
    skew: float = 0.0
    tokens_per_rank: int = 1024
    width: int = 128
    num_experts: int = 16


def cases(top_k: int, ranks: int) -> list[Case]:
    """The table's rows."""
    rows = []
    for skew in (0.0, 1.0):
        load = "balanced" if skew == 0 else "skewed"
        rows += [
            Case(f"1 task group, {load}, exact", skew=skew, top_k=top_k),
            Case(f"1 task group, {load}, de-duplicated", skew=skew, top_k=top_k, deduplicate=True),
        ]
    task_groups = 2
    while task_groups <= ranks:
        rows += [
            Case(f"{task_groups} task groups, global", task_groups, top_k=top_k),
            Case(f"{task_groups} task groups, per task group", task_groups, True, top_k=top_k),
            Case(f"{task_groups} task groups, per task group, de-duplicated", task_groups, True, True, top_k=top_k),
        ]
        task_groups *= 2
    return rows


def placement_of(case: Case, ranks: int) -> Placement:
    """One block for everything, or one block per task group."""
    grouping = TaskGrouping.one_per_task(case.num_task_groups, 1)
    weights = [1 / case.num_task_groups] * case.num_task_groups
    if case.per_task_group:
        return place(grouping, weights, num_ranks=ranks, ep_size=ranks // case.num_task_groups, mode="partitioned")
    return place(grouping, weights, num_ranks=ranks, ep_size=ranks, mode="colocated")


def run_case(rank: int, ranks: int, case: Case) -> dict[str, Any]:
    """One forward and backward pass on this rank; what it sent."""
    placement = placement_of(case, ranks)
    process_groups = create(placement)
    hosting = process_groups.hosting[0]
    per_task_group = case.num_experts // case.num_task_groups
    # Rank r always has tokens of the task group that owns it when each has its own ranks: both placements route alike.
    task_group = rank * case.num_task_groups // ranks
    generator = torch.Generator().manual_seed(rank)
    popularity = torch.arange(1, per_task_group + 1).double() ** -case.skew
    chosen_TK = (
        torch.multinomial(popularity.expand(case.tokens_per_rank, -1), case.top_k, generator=generator)
        + task_group * per_task_group
    )
    layout = SlotLayout((per_task_group,) * len(hosting.task_groups), hosting.ep_rank, hosting.ep_size)
    slot_of_E = torch.tensor(layout.table([g * per_task_group for g in hosting.task_groups], case.num_experts))
    traffic = TrafficCounter()
    exchange = None if hosting.process_group is None else Exchange(hosting.process_group, "layer", traffic)
    dispatcher = build_dispatcher(layout, exchange, top_k=case.top_k, deduplicate=case.deduplicate)
    x_TD = torch.randn(case.tokens_per_rank, case.width, generator=generator).requires_grad_()
    weights_TK = torch.rand(case.tokens_per_rank, case.top_k, generator=generator).requires_grad_()
    rows_RD, plan = dispatcher.dispatch(x_TD, slot_of_E[chosen_TK], weights_TK, host_counts=True)
    y_TD = dispatcher.combine(rows_RD, plan)
    # The experts are identities: what comes back is known.
    torch.testing.assert_close(y_TD, x_TD * weights_TK.sum(1, keepdim=True))
    y_TD.backward(torch.ones_like(y_TD))
    own = {peer for peer in range(ranks) if peer * case.num_task_groups // ranks == task_group}
    result = {
        "bytes_outside_task_group": traffic.bytes_outside(own),
        **{kind: asdict(traffic.read(f"layer/{kind}")) for kind in KINDS},
        "forward_tokens": traffic.read("layer/tokens", "forward").bytes,
        "forward_all": traffic.read(direction="forward").bytes,
        "load": torch.bincount(chosen_TK.flatten(), minlength=case.num_experts).tolist(),
    }
    process_groups.destroy()
    return result


def work(rank: int, ranks: int, store: str, all_cases: list[Case], out: str) -> None:
    """All cases on one rank; rank 0 writes what every rank sent."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    gathered: list[list[dict[str, Any]]] = []
    for case in all_cases:
        everyone: list[Any] = [None] * ranks
        dist.all_gather_object(everyone, run_case(rank, ranks, case))
        gathered.append(everyone)
    if rank == 0:
        Path(out).write_text(json.dumps(gathered))
    dist.barrier()
    dist.destroy_process_group()


def summarise(case: Case, ranks: int, sent: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over ranks. ``exact_bytes``: a row per (token, expert), both ways, if experts were spread evenly."""
    load = torch.tensor([one["load"] for one in sent]).sum(0).double()
    rows = sum(one["tokens"]["bytes"] + one["outputs"]["bytes"] for one in sent)
    return {
        **asdict(case),
        "load_skew": (load.max() / load.mean()).item(),
        "row_bytes": rows,
        "overhead_bytes": sum(one["counts"]["bytes"] + one["pairs"]["bytes"] for one in sent),
        "messages": sum(one[kind]["messages"] for one in sent for kind in KINDS),
        "exchanges_per_rank": sum(sent[0][kind]["calls"] for kind in KINDS),
        "bytes_outside_task_group": sum(one["bytes_outside_task_group"] for one in sent),
    }


def expected_rows(ranks: int, experts: int, top_k: int) -> float:
    """R(P): distinct ranks of K different experts drawn evenly."""
    return ranks * (1 - math.comb(experts - experts // ranks, top_k) / math.comb(experts, top_k))


def print_table(results: list[dict[str, Any]], ranks: int) -> None:
    """One row per case; each against the first row of its kind."""
    print("Off-rank traffic of one layer, forward + backward, summed over ranks.\n")
    print(
        "| case | load skew | rows MB | of reference | counts + weights kB | messages | exchanges | outside own ranks |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    reference = 1
    for row in results:
        if not row["deduplicate"] and not row["per_task_group"]:
            reference = row["row_bytes"]
        print(
            f"| {row['name']} | {row['load_skew']:.2f} | {row['row_bytes'] / 1e6:.3f} "
            f"| {row['row_bytes'] / reference:.3f} | {row['overhead_bytes'] / 1e3:.1f} | {row['messages']} "
            f"| {row['exchanges_per_rank']} | {row['bytes_outside_task_group']} |"
        )
    first = results[0]
    distinct = expected_rows(ranks, first["num_experts"], first["top_k"])
    print(f"\nExpected for a balanced load: de-duplicated / exact = R(P)/K = {distinct / first['top_k']:.3f}", end="")
    print(f"; G task groups: (1 - G/P) / (1 - 1/P) with P = {ranks}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--top_k", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    arguments = parser.parse_args()
    all_cases = cases(arguments.top_k, arguments.ranks)
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/sent.json"
        mp.spawn(work, (arguments.ranks, f"{folder}/store", all_cases, out), nprocs=arguments.ranks)
        sent = json.loads(Path(out).read_text())
    results = [summarise(case, arguments.ranks, one) for case, one in zip(all_cases, sent, strict=True)]
    print_table(results, arguments.ranks)
    if arguments.json:
        arguments.json.write_text(json.dumps({"ranks": arguments.ranks, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
