"""Time and size of saving and loading a training state: distmoe, ``torch.save``, DeepSpeed's own folder.

::

    python tools/bench/checkpoint.py                          # 2 ranks, ZeRO-1, about 30 M parameters
    python tools/bench/checkpoint.py --quick --json OUT.json

Every rank owns its part of weights and moments. ``torch.save`` writes that part as one pickle per rank and waits for
the disk, which is the least that any format must do; it can be read on the same ranks only. distmoe adds the cut into
chunks, a SHA-256 of every file, the index, the manifest and the rename; loading compares all checksums first. "Held" is
how long training stands still; "whole" ends when the checkpoint is complete. Files are read from the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hosted import TASKS, Arm, Size, make_arm, on_ranks, seconds

Times = dict[str, list[float]]


def measure(size: Size, stage: int, repeats: int, root: str) -> dict[str, Any]:
    """All arms, one after the other in every repeat; medians in seconds, sizes in bytes."""
    from distmoe.checkpoint.progress import folder_bytes
    from distmoe.checkpoint.saver import Saver
    from distmoe.engine.deepspeed_folder import check
    from distmoe.parallel.process_groups import create_background

    arm = make_arm(size, {"stage": stage})
    check(arm.engine.settings, routed=bool(size.experts), ep_size=1, partitioned=False)
    arm.step()
    beside = Saver(keep=lambda _: None, background=create_background())
    folder, times, sizes = Path(root), Times(), dict[str, int]()
    for repeat in range(repeats + 1):
        one: dict[str, float] = {}
        one["step"] = seconds(arm.step)
        for name, save, load in _formats(arm, folder):
            place = folder / name
            _remove(place)
            one[f"{name} save"] = seconds(save)
            sizes[name] = folder_bytes(place)
            one[f"{name} load"] = seconds(load)
        _remove(folder / "beside")
        one |= _beside(arm, beside, folder / "beside")
        if repeat:  # the first one warms up
            for name, value in one.items():
                times.setdefault(name, []).append(value)
    medians = {name: statistics.median(values) for name, values in times.items()}
    count = sum(torch.Size(record.shape).numel() for record in arm.engine.tensor_records().values())
    return {"seconds": medians, "bytes": sizes, "parameters": count}


def _formats(arm: Arm, folder: Path) -> list[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    from distmoe.checkpoint import store
    from distmoe.engine.compatibility import as_data_parallel

    engine, own = arm.engine, folder / "torch.save" / f"{dist.get_rank()}.pt"

    def torch_save() -> None:
        own.parent.mkdir(parents=True, exist_ok=True)
        with own.open("wb") as file:
            torch.save({(one.key, one.lo): one.data for one in engine.fragments()}, file)
            file.flush()
            os.fsync(file.fileno())

    def torch_load() -> None:
        stored = torch.load(own, weights_only=True)
        for one in engine.fragments():
            one.data.copy_(stored[one.key, one.lo])

    def load() -> None:
        [step] = store.steps(folder / "distmoe")
        engine.load_state(step, manifest=store.check(step, tasks=TASKS, grouping=arm.grouping))

    def deepspeed_load() -> None:
        with as_data_parallel(engine._ds):
            engine._ds.load_checkpoint(str(folder / "deepspeed"))

    return [
        ("torch.save", torch_save, torch_load),
        ("distmoe", lambda: _save(arm, folder / "distmoe"), load),
        ("deepspeed", lambda: engine.save_deepspeed(folder / "deepspeed"), deepspeed_load),
    ]


def _save(arm: Arm, root: Path, **more: Any) -> None:
    arm.engine.save_state(root, tasks=TASKS, grouping=arm.grouping, trainer_state={}, rank_state={}, **more)


def _beside(arm: Arm, saver: Any, root: Path) -> dict[str, float]:
    """A save beside training: how long training stands still, and what its next step takes meanwhile."""
    dist.barrier()
    began = time.perf_counter()
    held = seconds(lambda: _save(arm, root, save=saver.save))
    step = seconds(arm.step)
    saver.wait()
    dist.barrier()
    return {"beside held": held, "beside step": step, "beside whole": time.perf_counter() - began}


def _remove(place: Path) -> None:
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    dist.barrier()


def print_table(found: dict[str, Any]) -> None:
    """Ratios to torch.save."""
    times, sizes = found["seconds"], found["bytes"]
    floor = {"save": times["torch.save save"], "load": times["torch.save load"], "bytes": sizes["torch.save"]}
    print("| | training held | whole save | load | size |")
    print("|---|--:|--:|--:|--:|")
    for name, label in (
        ("torch.save", "`torch.save` of the same state"),
        ("distmoe", "distmoe, at once"),
        ("deepspeed", "DeepSpeed's own folder"),
    ):
        save, load = times[f"{name} save"] / floor["save"], times[f"{name} load"] / floor["load"]
        print(f"| {label} | {save:.2f} | {save:.2f} | {load:.2f} | {sizes[name] / floor['bytes']:.3f} |")
        if name == "distmoe":
            held, whole = times["beside held"] / floor["save"], times["beside whole"] / floor["save"]
            print(f"| distmoe, beside training | {held:.2f} | {whole:.2f} | | |")
    print(
        f"\ntorch.save: {floor['save']:.2f} s, load {floor['load']:.2f} s, {floor['bytes'] / 1e6:.0f} MB. "
        f"A step beside the writing: {times['beside step'] / times['step']:.2f} of one alone ({times['step']:.2f} s)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1, help="ZeRO stage")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one repeat")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    args = parser.parse_args()
    size = Size(width=64, layers=2, experts=4) if args.quick else Size(width=384, layers=4, experts=8)
    repeats = 1 if args.quick else args.repeats
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = on_ranks(measure, args.ranks, size, args.stage, repeats, folder)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"torch {torch.__version__}, {where}, {args.ranks} ranks, ZeRO-{args.stage} fp32, {size}, "
        f"{found['parameters'] / 1e6:.1f} M parameters, {repeats} repeats, load {load}\n"
    )
    print_table(found)
    if args.json:
        values = found | {"torch": torch.__version__, "device": where, "ranks": args.ranks, "stage": args.stage}
        args.json.write_text(json.dumps(values | {"repeats": repeats, "load": load}, indent=1) + "\n")


if __name__ == "__main__":
    main()
