"""One all-to-all per task group against a global one, on two islands with a slow link.

``python -m tests.cluster.slow_link``. Four ranks on four hosts, two per island. A step is forward and backward of two
routed layers with two task groups. *Global*: one block of four ranks holds both task groups. *Partitioned*: each task
group has the ranks of one island. Printed: bytes between the islands (counted, forecast, and what the kernel saw),
seconds per step, and the factor between the two placements beside the one that ``distmoe.forecast`` (``tools/plan.py``)
predicts from the rates of the links and the speed of a matrix product, measured in the same rounds.

The hosts' own links are slow as well, so that both steps are bound by the network and not by two busy cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.cluster.islands import Islands, build, isolate

RANKS, PER_ISLAND, LAYERS, TASK_GROUPS = 4, 2, 2, 2
WIDTH, EXPERT_WIDTH, EXPERTS, TOKENS = 256, 64, 8, 2048
SIZE = 512  # of the matrix product that measures the processor
PLACEMENTS = {"global": ("colocated", 4), "partitioned": ("partitioned", 2)}
SETTINGS = (
    f"model.hidden_size={WIDTH}", "model.num_heads=4", f"model.num_layers={LAYERS}", "model.intermediate_size=64",
    "model.moe.layers=all", f"model.moe.num_experts={EXPERTS}", "model.moe.top_k=1", "model.dropout=0",
    f"model.moe.expert_size={EXPERT_WIDTH}", f"tasks.suite.num_task_groups={TASK_GROUPS}",
    "tasks.suite.tasks_per_group=1", "structure.grouping=per_task", "data.max_length=64",
    f"data.batch_size={RANKS * TOKENS // 64}",
)  # fmt: skip


@dataclass(frozen=True)
class Links:
    """Rates in each direction, Mbit/s."""

    host: float
    between: float


def fork_ranks(islands: Islands, work: Any, folder: Path, port: int) -> list[Any]:
    """Calls ``work(rank)`` on one forked process per host and returns the answers."""
    children = []
    for rank in range(RANKS):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                import torch.distributed as dist

                islands.enter(rank + 1)
                os.environ.update(
                    RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR=islands.address(1), MASTER_PORT=str(port),
                    GLOO_SOCKET_IFNAME="eth0",
                )  # fmt: skip
                dist.init_process_group("gloo")
                answer = work(rank)
                (folder / f"{rank}.json").write_text(json.dumps(answer))
                dist.barrier()
                code = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        sys.exit(f"ranks ended with codes {codes}")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


class Arm:
    """The routed layers of one placement on this rank."""

    def __init__(self, rank: int, name: str) -> None:
        import torch

        from distmoe.moe.build import build_routed_feed_forward
        from distmoe.moe.config import GateConfig, MoEConfig
        from distmoe.parallel.process_groups import create
        from distmoe.recipes.loader import resolve
        from distmoe.training.run_data import open_sources

        workload, placement = planned(name)
        groups = create(placement)
        self.layers = [
            build_routed_feed_forward(
                MoEConfig(num_experts=EXPERTS, top_k=1, expert_size=EXPERT_WIDTH, gate=GateConfig(kind="token")),
                layer_index=index, routed_index=index, hidden_size=WIDTH, intermediate_size=64, activation="gelu",
                tasks=open_sources(resolve("demo", SETTINGS)).tasks, partition=workload.grouping.layers[index],
                hosting=groups.hosting[index],
            )
            for index in range(LAYERS)
        ]  # fmt: skip
        for layer in self.layers:
            for parameter in layer.parameters():
                torch.nn.init.normal_(parameter, std=0.05)
        self.x_TD = torch.randn(TOKENS, WIDTH, requires_grad=True)
        # Global: half of the rank's tokens are of each task; partitioned: all are of the island's own. An even load.
        hosted = placement.hosted_tasks(rank)
        task_T = torch.tensor([hosted[token % len(hosted)] for token in range(TOKENS)])
        per_task_group = EXPERTS // TASK_GROUPS
        self.chosen_TK = (torch.arange(TOKENS) // len(hosted) % per_task_group + per_task_group * task_T)[:, None]

    def step(self) -> None:
        """Forward and backward."""
        import torch

        hidden_TD = self.x_TD
        for layer in self.layers:
            weights_TK = torch.ones(TOKENS, 1, requires_grad=True)
            slots_TK = layer.slot_of_E[self.chosen_TK]
            rows_RD, plan = layer.dispatcher.dispatch(hidden_TD, slots_TK, weights_TK, host_counts=True)
            inputs = zip(layer.pools.values(), plan.pools(rows_RD, layer.dispatcher.layout), strict=True)
            hidden_TD = layer.dispatcher.combine(torch.cat([pool(*rows) for pool, rows in inputs]), plan)
        hidden_TD.square().mean().backward()

    def bytes_away(self, rank: int) -> int:
        """Counted since the last reset: what this rank sent to the other island."""
        own = range(rank // PER_ISLAND * PER_ISLAND, (rank // PER_ISLAND + 1) * PER_ISLAND)
        return sum(layer.traffic.bytes_outside(own) for layer in self.layers)


def run_rank(rank: int, islands: Islands, rounds: int) -> dict[str, Any]:
    """Bytes of one step, and median seconds of the slowest rank.

    A round does, one after the other, a matrix product, from which the forecast learns the speed of a rank, and a step
    of each placement. Whatever else the machine does meets all of them alike.
    """
    import torch
    import torch.distributed as dist

    arms = {name: Arm(rank, name) for name in PLACEMENTS}
    left, right = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    actions = {
        "product": lambda: left @ right,
        **{name: arm.step for name, arm in arms.items()},
    }
    for action in actions.values():  # connections are made, memory is touched
        action()
    answer: dict[str, Any] = {}
    for name, arm in arms.items():
        for layer in arm.layers:
            layer.traffic.reset()
        dist.barrier()
        before = islands.bytes_over_link() if rank == 0 else 0
        dist.barrier()
        arm.step()
        dist.barrier()
        wire = islands.bytes_over_link() - before if rank == 0 else 0
        dist.barrier()
        answer[name] = {"away": arm.bytes_away(rank), "wire": wire}
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            dist.barrier()
            began = time.perf_counter()
            action()
            took = torch.tensor(time.perf_counter() - began)
            dist.all_reduce(took, op=dist.ReduceOp.MAX)
            times[name].append(took.item())
    return answer | {"seconds": {name: statistics.median(found) for name, found in times.items()}}


def planned(name: str) -> tuple[Any, Any]:
    """Workload and placement of an arm."""
    from distmoe.forecast.workload import make_workload
    from distmoe.parallel.placement import place
    from distmoe.recipes.loader import resolve
    from distmoe.training.run_data import open_sources

    config = resolve("demo", SETTINGS)
    found = make_workload(config, open_sources(config))
    mode, ep_size = PLACEMENTS[name]
    return found, place(found.grouping, found.weights, num_ranks=RANKS, ep_size=ep_size, mode=mode)  # type: ignore[arg-type]


def predict(name: str, seconds: dict[str, float], links: Links) -> dict[str, float]:
    """Bytes between the islands and seconds of a step's routed layers, as ``tools/plan.py`` would say."""
    from distmoe.forecast.hardware import Accelerator, Cluster
    from distmoe.forecast.step_time import step_time
    from distmoe.forecast.traffic import step_traffic

    found, placement = planned(name)
    rate = 2.0 * SIZE**3 / seconds["product"]
    device = Accelerator(
        name="cpu", memory=0, low_flops=rate, fp32_flops=rate, hbm=1e10, inside=links.host * 1e6 / 8,
        between=links.between * 1e6 / 8 / PER_ISLAND, source="rates of the links; product measured now",
    )  # fmt: skip
    cluster, micro_batch = Cluster(2, PER_ISLAND, device), TOKENS // found.length
    time_of = step_time(
        found, placement, cluster, stage=1, precision="fp32", micro_batch=micro_batch, accumulation=1
    )  # fmt: skip
    sent = step_traffic(
        found, placement, per_node=PER_ISLAND, micro_batch=micro_batch, accumulation=1, element=4
    )  # fmt: skip
    return {"away": sent.bytes_between, "seconds": time_of.experts + time_of.exchange}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mbit", type=float, default=20.0, help="rate between the islands, each direction, Mbit/s")
    parser.add_argument("--host_mbit", type=float, default=40.0, help="rate of each host")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    isolate("tests.cluster.slow_link")
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    # Forked ranks share what is imported here.
    import distmoe.forecast.step_time
    import distmoe.moe.build
    import distmoe.recipes.loader  # noqa: F401

    links = Links(options.host_mbit, options.mbit)
    islands = build(per_island=PER_ISLAND, mbit=links.between, host_mbit=links.host)
    with tempfile.TemporaryDirectory() as name:
        ranks = fork_ranks(islands, partial(run_rank, islands=islands, rounds=options.rounds), Path(name), 20000)
    return report(ranks, links)


def report(ranks: list[dict[str, Any]], links: Links) -> int:
    """Prints the table; 0 if the counts are equal and the factor is within 25 % of the predicted one."""
    seconds = ranks[0]["seconds"]
    print(f"Two islands of two hosts: {links.host:g} Mbit/s per host, {links.between:g} Mbit/s between the islands.")
    print(
        f"{LAYERS} routed layers, {TOKENS} tokens per rank, width {WIDTH}; a product of {SIZE} x {SIZE} matrices takes"
    )
    print(f"{1e3 * seconds['product']:.1f} ms on the slowest rank.\n")
    print("| placement | all-to-all bytes between islands, counted | forecast | on the wire | s per step | predicted |")
    print("|---|--:|--:|--:|--:|--:|")
    good, factor = True, {}
    for arm in PLACEMENTS:
        away, forecast = sum(rank[arm]["away"] for rank in ranks), predict(arm, seconds, links)
        cells = (away, forecast["away"], ranks[0][arm]["wire"])
        times = f"{seconds[arm]:.3f} | {forecast['seconds']:.3f}"
        print(f"| {arm} | {' | '.join(f'{cell:,.0f}' for cell in cells)} | {times} |")
        good = good and away == forecast["away"] and (away == 0) == (arm == "partitioned")
        factor[arm] = (seconds[arm], forecast["seconds"])
    measured, predicted = (factor["global"][index] / factor["partitioned"][index] for index in (0, 1))
    print(f"\npartitioned is faster by {measured:.2f}, predicted {predicted:.2f}: {measured / predicted - 1:+.0%}")
    return int(not (good and abs(measured / predicted - 1) <= 0.25))


if __name__ == "__main__":
    sys.exit(main())
