"""One all-to-all per task group against a global one, on two islands with a slow link.

``python -m tests.cluster.slow_link``. Four ranks on four hosts, two per island. A step is forward and backward of two
routed layers with two task groups. *Global*: one block of four ranks holds both task groups. *Partitioned*: each task
group has the ranks of one island. Printed: bytes between the islands (counted, forecast, and what the kernel saw),
seconds per step, and the factor between the two placements beside the one that ``distmoe.forecast`` (``tools/plan.py``)
predicts from the speed of links and processors, which are measured first, on all ranks at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from tests.cluster.islands import Islands, build, isolate

RANKS, PER_ISLAND, LAYERS, TASK_GROUPS = 4, 2, 2, 2
WIDTH, EXPERT_WIDTH, EXPERTS, TOKENS = 256, 64, 8, 2048
PLACEMENTS = {"global": ("colocated", 4), "partitioned": ("partitioned", 2)}
SETTINGS = (
    f"model.hidden_size={WIDTH}", "model.num_heads=4", f"model.num_layers={LAYERS}", "model.intermediate_size=64",
    "model.moe.layers=all", f"model.moe.num_experts={EXPERTS}", "model.moe.top_k=1", "model.dropout=0",
    f"model.moe.expert_size={EXPERT_WIDTH}", f"tasks.suite.num_task_groups={TASK_GROUPS}",
    "tasks.suite.tasks_per_group=1", "structure.grouping=per_task", "data.max_length=128",
    f"data.batch_size={RANKS * TOKENS // 128}",
)  # fmt: skip


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


def measure_parts(rank: int) -> dict[str, float]:
    """What the forecast needs to know of this machine, measured on all ranks at once: rate, memory, link inside."""
    import torch
    import torch.distributed as dist

    from distmoe.forecast.hardware import measure_cpu
    from distmoe.parallel.all_to_all import all_to_all

    islands = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    own = islands[rank // PER_ISLAND]
    dist.barrier()
    device = measure_cpu(seconds=1.0)
    rows = torch.zeros(TOKENS, WIDTH)
    half = [TOKENS // 2] * 2
    times = []
    for _ in range(12):
        dist.barrier()
        began = time.perf_counter()
        all_to_all(rows, send_counts=half, receive_counts=half, process_group=own)
        times.append(time.perf_counter() - began)
    sent = rows.nbytes / 2
    return {"flops": device.fp32_flops, "hbm": device.hbm, "inside": sent / sorted(times)[len(times) // 2]}


def run_steps(rank: int, name: str, steps: int) -> dict[str, Any]:
    """Bytes of one step, and the median seconds of the slowest rank."""
    import torch
    import torch.distributed as dist

    from distmoe.moe.build import build_routed_feed_forward
    from distmoe.moe.config import GateConfig, MoEConfig
    from distmoe.parallel.process_groups import create
    from distmoe.recipes.loader import resolve
    from distmoe.training.run_data import open_sources

    found, placement = planned(name)
    tasks = open_sources(resolve("demo", SETTINGS)).tasks
    groups = create(placement)
    layers = [
        build_routed_feed_forward(
            MoEConfig(num_experts=EXPERTS, top_k=1, expert_size=EXPERT_WIDTH, gate=GateConfig(kind="token")),
            layer_index=index, routed_index=index, hidden_size=WIDTH, intermediate_size=64, activation="gelu",
            tasks=tasks, partition=found.grouping.layers[index], hosting=groups.hosting[index],
        )
        for index in range(LAYERS)
    ]  # fmt: skip
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    x_TD = torch.randn(TOKENS, WIDTH, requires_grad=True)
    # Global: half of the rank's tokens are of each task; partitioned: all are of the island's own. Even load in both.
    hosted = placement.hosted_tasks(rank)
    task_T = torch.tensor([hosted[token % len(hosted)] for token in range(TOKENS)])
    per_task_group = EXPERTS // TASK_GROUPS
    chosen_TK = (torch.arange(TOKENS) // len(hosted) % per_task_group + per_task_group * task_T)[:, None]

    def step() -> None:
        hidden = x_TD
        for layer in layers:
            weights_TK = torch.ones(TOKENS, 1, requires_grad=True)
            rows_RD, plan = layer.dispatcher.dispatch(hidden, layer.slot_of_E[chosen_TK], weights_TK, host_counts=True)
            out = [pool(rows, counts, host) for pool, (rows, counts, host) in zip(
                layer.pools.values(), plan.pools(rows_RD, layer.dispatcher.layout), strict=True)]  # fmt: skip
            hidden = layer.dispatcher.combine(torch.cat(out), plan)
        hidden.square().mean().backward()

    step()  # connections are made, memory is touched
    own = range(rank // PER_ISLAND * PER_ISLAND, (rank // PER_ISLAND + 1) * PER_ISLAND)
    for layer in layers:
        layer.traffic.reset()
    times = []
    for _ in range(steps):
        dist.barrier()
        began = time.perf_counter()
        step()
        took = torch.tensor(time.perf_counter() - began)
        dist.all_reduce(took, op=dist.ReduceOp.MAX)
        times.append(took.item())
    away = sum(layer.traffic.bytes_outside(own) for layer in layers)
    return {"away": away / steps, "seconds": sorted(times)[len(times) // 2]}


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


def predict(name: str, parts: dict[str, float], mbit: float) -> dict[str, float]:
    """Bytes between the islands and seconds of a step's routed layers, as ``tools/plan.py`` would say."""
    from distmoe.forecast.hardware import Accelerator, Cluster
    from distmoe.forecast.step_time import step_time
    from distmoe.forecast.traffic import step_traffic

    found, placement = planned(name)
    device = Accelerator(
        name="cpu", memory=0, low_flops=parts["flops"], fp32_flops=parts["flops"], hbm=parts["hbm"],
        inside=parts["inside"], between=mbit * 1e6 / 8 / PER_ISLAND, source="measured now",
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
    parser.add_argument("--mbit", type=float, default=200.0, help="rate of the link in each direction, Mbit/s")
    parser.add_argument("--steps", type=int, default=7)
    options = parser.parse_args()
    isolate("tests.cluster.slow_link")
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    # Forked ranks share what is imported here.
    import distmoe.forecast.step_time
    import distmoe.moe.build
    import distmoe.recipes.loader  # noqa: F401

    islands, port = build(per_island=PER_ISLAND, mbit=options.mbit), 20000
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        everyone = fork_ranks(islands, measure_parts, folder, port)
        parts = {key: min(one[key] for one in everyone) for key in everyone[0]}
        for number, arm in enumerate(PLACEMENTS, 1):
            before = islands.bytes_over_link()
            work = partial(run_steps, name=arm, steps=options.steps)
            ranks = fork_ranks(islands, work, folder, port + number)
            wire = (islands.bytes_over_link() - before) / (options.steps + 1)
            # Planning builds a model: in a process of its own, so that this one keeps a single thread.
            forecast = in_child(partial(predict, arm, parts, options.mbit), folder)
            rows[arm] = {
                "away": sum(one["away"] for one in ranks), "seconds": ranks[0]["seconds"], "wire": wire,
                "forecast": forecast["away"], "predicted": forecast["seconds"],
            }  # fmt: skip
    return report(rows, parts, options.mbit)


def in_child(work: Any, folder: Path) -> Any:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            (folder / "answer.json").write_text(json.dumps(work()))
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        sys.exit("the forecast failed")
    return json.loads((folder / "answer.json").read_text())


def report(rows: dict[str, dict[str, float]], parts: dict[str, float], mbit: float) -> int:
    """Prints the table; 0 if the counts are equal and the factor is within 25 % of the predicted one."""
    print(f"Two islands of two hosts, {mbit:g} Mbit/s between them; {LAYERS} routed layers, {TOKENS} tokens per rank, ")
    print(f"width {WIDTH}. Measured for the forecast: {parts['inside'] / 1e6:.0f} MB/s inside an island, "
          f"{parts['flops'] / 1e9:.1f} GFLOP/s per rank.\n")  # fmt: skip
    print("| placement | all-to-all bytes between islands, counted | forecast | on the wire | s per step | predicted |")
    print("|---|--:|--:|--:|--:|--:|")
    for arm, row in rows.items():
        print(f"| {arm} | {row['away']:,.0f} | {row['forecast']:,.0f} | {row['wire']:,.0f} | {row['seconds']:.3f} "
              f"| {row['predicted']:.3f} |")  # fmt: skip
    whole, cut = rows["global"], rows["partitioned"]
    factor, predicted = whole["seconds"] / cut["seconds"], whole["predicted"] / cut["predicted"]
    print(f"\npartitioned is faster by {factor:.2f}, predicted {predicted:.2f}: {factor / predicted - 1:+.0%}")
    equal = all(row["away"] == row["forecast"] for row in rows.values())
    return int(not (equal and cut["away"] == 0 and abs(factor / predicted - 1) <= 0.25))


if __name__ == "__main__":
    sys.exit(main())
