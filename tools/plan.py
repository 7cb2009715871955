#!/usr/bin/env python3
"""What a run needs and how fast it can be, before GPU hours are spent. Starts no rank.

python tools/plan.py --recipe demo --nodes 8 --gpus_per_node 8 --gpu h100
python tools/plan.py --recipe nlu data.root=DATA model.pretrained=HF_DIR --gpu h200 --json
python tools/plan.py --simulate 4096 --out runs/plan      # ranks and task groups grow; writes a picture
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distmoe.engine import ds_config
from distmoe.errors import DistmoeError
from distmoe.forecast import plain, text
from distmoe.forecast.arrangement import forecast, memory_of_stages, rank_choices
from distmoe.forecast.choice import Choice
from distmoe.forecast.hardware import ACCELERATORS, Cluster, accelerator
from distmoe.forecast.simulate import simulate
from distmoe.forecast.typed import typed
from distmoe.forecast.workload import Workload, make_workload
from distmoe.parallel.env import RankEnv
from distmoe.recipes.loader import DEFAULT_RECIPE, resolve
from distmoe.training.agreement import Agreement
from distmoe.training.config import RunConfig
from distmoe.training.run_data import Sources, encode, open_sources


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description="Plan a run: memory, communication, step time, best arrangements.")
    result.add_argument("--recipe", default=DEFAULT_RECIPE, help="name of a shipped recipe or path of a YAML file")
    result.add_argument("--nodes", type=int, default=1, help="machines (default: 1)")
    result.add_argument("--gpus_per_node", type=int, default=8, help="GPUs, and so ranks, of each (default: 8)")
    names = [one.name for one in ACCELERATORS]
    result.add_argument("--gpu", default="h100", help=f"{' | '.join(names)} | cpu (measured now); default h100")
    result.add_argument("--gpu_memory", type=float, metavar="GIB", help="memory of a GPU; default: that of --gpu")
    result.add_argument("--zero", type=int, choices=(0, 1, 2, 3), help="ZeRO stage; default: of parallel.deepspeed")
    result.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: of parallel.deepspeed")
    result.add_argument("--length", type=int, help="tokens per example; default data.max_length, an upper bound")
    result.add_argument(
        "--weights", choices=("data", "equal"), default="data", help="mixture from the training splits, or equal"
    )
    result.add_argument("--top", type=int, default=5, help="arrangements to list")
    result.add_argument("--simulate", type=int, metavar="RANKS", help="grow ranks and task groups up to RANKS")
    result.add_argument(
        "--out",
        type=Path,
        default=Path("runs/plan"),
        help="folder of the simulation's picture, and of "
        "DeepSpeed files for arrangements that no shipped one describes",
    )
    result.add_argument("--json", action="store_true", help="print one JSON object")
    result.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="as for distmoe/train.py (docs/configuration.md)"
    )
    return result


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_intermixed_args(argv)
    try:
        return run(arguments)
    except DistmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    config = resolve(arguments.recipe, arguments.overrides)
    devices = Cluster(
        arguments.nodes, arguments.gpus_per_node, accelerator(arguments.gpu, memory_gib=arguments.gpu_memory)
    )
    cluster = devices.of_data_ranks(config.parallel.tensor)
    sources = open_sources(config)
    sizes = None if arguments.weights == "equal" else train_sizes(sources, config)
    workload = make_workload(config, sources, sizes=sizes, length=arguments.length)
    choice = choice_of(config, arguments, workload, cluster)
    precision = choice.precision
    if arguments.simulate:
        return run_simulation(arguments, workload, cluster, precision)
    found = forecast(workload, cluster, choice)
    feasible, refused = rank_choices(workload, cluster, choice)
    if arguments.json:
        first = feasible[: arguments.top]
        values = plain.plan(workload, cluster, found, best=first, feasible=len(feasible), refused=len(refused))
        print(json.dumps(values))
        return 0
    best = [typed(workload, cluster, one, folder=arguments.out) for one in feasible[: arguments.top]]
    lines = [
        *text.heading(workload, cluster, precision),
        *text.placement_table(workload, cluster, found.placement),
        *text.memory_table(memory_of_stages(workload, cluster, found)),
        *text.traffic_table(workload, cluster, found),
        *text.tensor_lines(workload, found),
        *text.time_lines(found),
        *text.caution_lines(workload, cluster, found),
        *text.ranking(feasible, len(refused), best),
    ]
    print("\n".join(lines))
    return 0


def choice_of(config: RunConfig, arguments: argparse.Namespace, workload: Workload, cluster: Cluster) -> Choice:
    """What the recipe and its DeepSpeed file say, unless the command line says otherwise."""
    micro_batch, accumulation = workload.micro_batches(cluster.num_ranks)
    settings = ds_config.resolve(
        config.parallel.deepspeed,
        optimizer=config.optimizer,
        micro_batch_size=micro_batch,
        accumulation_steps=accumulation,
        num_ranks=cluster.num_ranks,
        device_type=cluster.accelerator.device_type,
    )
    return Choice.of(config.parallel, settings, stage=arguments.zero, precision=arguments.precision)


def train_sizes(sources: Sources, config: RunConfig) -> list[int]:
    """Examples of each training split, as a run would use them; of a language model, from its data cache."""
    if any(spec.predicts_tokens for spec in sources.tasks):  # a corpus has windows, which only its tokens tell
        return list(encode(sources, config, env=RankEnv(0, 1, 0, 1), agreement=Agreement()).encoded.train_sizes)
    limit = config.data.max_train_examples
    sizes = [len(sources.source.examples(name, "train")) for name in sources.tasks.names]
    return [size if limit is None else min(size, limit) for size in sizes]


def run_simulation(arguments: argparse.Namespace, workload: Workload, cluster: Cluster, precision: str) -> int:
    from distmoe.forecast.draw import draw_simulation

    micro_batch, accumulation = workload.micro_batches(cluster.num_ranks)
    points = list(
        simulate(
            workload,
            cluster,
            max_ranks=arguments.simulate,
            tokens=micro_batch * accumulation * workload.length,
            element=4 if precision == "fp32" else 2,
        )
    )
    if arguments.json:
        print(json.dumps([asdict(point) for point in points]))
    else:
        print("\n".join(text.simulation_table(points)))
    pictures = draw_simulation(points, arguments.out)
    print(f"picture: {pictures[0]}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
