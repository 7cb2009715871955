"""Memory forecast against memory used: peak resident memory of ranks on the CPU, beside what tools/plan.py predicts.

::

    python tools/bench/memory.py                  # all cases, two ranks each
    python tools/bench/memory.py --case zero1_fp32

Each rank is a process that trains a few steps. Counted is the growth of its resident memory from the moment before
model and engine are built to the peak inside the steps after the first. Libraries grow as well (compiled kernels of
each shape, communicators), tensors or not: by how much is what the same run grows with tensors of negligible width
("runtime" in the table, beyond what is forecast for it), which is subtracted. The forecast is that of a CPU, where a
reduction bucket counts as far as it is written and drop-out keeps more; every example is as long as the forecast
assumes (``data.max_length`` is below the length of every text).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

RANKS = 2
MODEL = (
    "model.hidden_size=512", "model.num_layers=4", "model.num_heads=8", "model.intermediate_size=2048",
    "model.moe.num_experts=9", "model.moe.layers=odd", "data.max_length=16", "data.batch_size=288",
    "schedule.num_steps=4", "run.eval_every=null", "run.log_every=1000",
    "run.tensorboard=false", "run.report=false", "checkpoint.every=null", "tasks.suite.train_examples=128",
    "tasks.suite.low_resource_examples=128", "tasks.suite.eval_examples=8",
)  # fmt: skip
NARROW = ("model.hidden_size=16", "model.intermediate_size=32", "model.num_heads=1", "data.batch_size=18")
CASES: dict[str, tuple[str, ...]] = {
    "dense, zero0_fp32": ("parallel.deepspeed=zero0_fp32", "model.moe=null", "structure.grouping=one"),
    "zero1_fp32": ("parallel.deepspeed=zero1_fp32",),
    "zero1_fp32, recomputed": ("parallel.deepspeed=zero1_fp32", "model.activation_checkpointing=true"),
    "zero1_fp32, partitioned": (
        "parallel.deepspeed=zero1_fp32", "parallel.placement=partitioned", "structure.grouping=family",
    ),
    "zero1_fp32, blocks of 2": ("parallel.deepspeed=zero1_fp32", "parallel.ep_size=2", "model.moe.num_experts=12"),
    "zero1_bf16": ("parallel.deepspeed=zero1_bf16",),
    "zero2_bf16": ("parallel.deepspeed=zero2_bf16",),
}  # fmt: skip


def status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    assert found is not None, f"/proc/self/status has no {name}"
    return int(found[1]) * 1024


def rank_process(out: Path, overrides: list[str]) -> None:
    """Trains as one rank and writes the growth of its memory."""
    import gc

    from distmoe.parallel.watch.whereabouts import Whereabouts
    from distmoe.recipes.loader import resolve
    from distmoe.training.run import train
    from distmoe.training.stop_signal import StopSignal

    at, base, peak = Whereabouts.at, [0], [0]

    def measured(self: Whereabouts, phase: str, *, step: int | None = None) -> None:
        if phase.startswith("building"):
            gc.collect()
            base[0] = status("VmRSS")
        elif phase.startswith("loading") and step == 1:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
        elif phase.startswith(("logging", "saving")) and not peak[0]:
            peak[0] = status("VmHWM")
        at(self, phase, step=step)

    Whereabouts.at = measured  # type: ignore[method-assign]
    train(resolve("demo", overrides), resume="never", stop=StopSignal())
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(peak[0] - base[0]))


def measure(folder: Path, overrides: list[str]) -> list[int]:
    """Growth of every rank, in bytes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {
        "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_MMAP_THRESHOLD_": "65536", "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
    }  # fmt: skip
    command = [sys.executable, __file__, "--as_rank", str(folder), *overrides]
    children = [
        subprocess.Popen(command, env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                         stdout=subprocess.DEVNULL)
        for rank in range(RANKS)
    ]  # fmt: skip
    codes = [child.wait() for child in children]
    if any(codes):
        sys.exit("a rank failed")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


def predict(overrides: list[str]) -> Any:
    """The forecast for rank 0, and its parts."""
    from distmoe.engine import ds_config
    from distmoe.forecast.memory import memory_on
    from distmoe.forecast.workload import make_workload
    from distmoe.parallel.placement import place
    from distmoe.recipes.loader import resolve
    from distmoe.training.run_data import open_sources

    config = resolve("demo", overrides)
    workload = make_workload(config, open_sources(config))
    micro, accumulation = workload.micro_batches(RANKS)
    settings = ds_config.resolve(
        config.parallel.deepspeed, optimizer=config.optimizer, micro_batch_size=micro,
        accumulation_steps=accumulation, num_ranks=RANKS, device_type="cpu",
    )  # fmt: skip
    placement = place(
        workload.grouping, workload.weights, num_ranks=RANKS, ep_size=config.parallel.ep_size,
        mode=config.parallel.placement,
    )  # fmt: skip
    return memory_on(
        workload, placement, 0, stage=settings.stage, precision=settings.precision, micro_batch=micro,
        accumulation=accumulation, fp32_accumulation=settings.accumulation_dtype == "fp32",
        bucket=settings.reduce_bucket_size, overlap_comm=settings.overlap_comm, offload=settings.offload,
        device_type="cpu",
    )  # fmt: skip


def compare(case: tuple[str, ...]) -> tuple[Any, int]:
    """The forecast of a case, and how many bytes its fullest rank grew by."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = [f"run.output_dir={folder}", "run.name=run", f"data.cache_dir={folder / 'cache'}"]
        overrides = [*MODEL, *case, *places]
        return predict(overrides), max(measure(folder, overrides))


def main() -> int:
    if sys.argv[1:2] == ["--as_rank"]:
        rank_process(Path(sys.argv[2]), sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=list(CASES), help="default: all")
    options = parser.parse_args()
    print(
        "| case | weights | gradients | master | moments | activations | buffers | forecast MiB | runtime "
        "| rest | error |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    worst = 0.0
    for case in [options.case] if options.case else CASES:
        forecast, grown = compare(CASES[case])
        narrow, libraries = compare((*CASES[case], *NARROW))
        runtime = libraries - narrow.total
        measured = grown - runtime
        parts = (
            getattr(forecast, part)
            for part in ("weights", "gradients", "master", "moments", "activations", "buffers", "total")
        )
        error = forecast.total / measured - 1
        worst = max(worst, abs(error))
        cells = " | ".join(f"{part / 2**20:.0f}" for part in parts)
        print(f"| {case} | {cells} | {runtime / 2**20:.0f} | {measured / 2**20:.0f} | {error:+.0%} |", flush=True)
    print(f"\nlargest error: {worst:.0%} (goal: 10 %)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
