#!/usr/bin/env python3
"""Writes a checkpoint as one set of safetensors files with an index, for programs that read whole tensors.

python tools/reshard.py runs/NAME/checkpoints/step_N OUT
python tools/reshard.py runs/NAME/checkpoints/step_N OUT --moments --dtype bfloat16 --file-size 2

A run needs no resharding: it resumes a checkpoint on any number of ranks as it is (docs/checkpoints.md).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Consolidate a distmoe checkpoint into safetensors files.")
    parser.add_argument("checkpoint", type=Path, help="folder runs/NAME/checkpoints/step_N")
    parser.add_argument("out", type=Path, help="new folder to write")
    parser.add_argument("--moments", action="store_true", help="also both Adam moments: three times the size")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the weights")
    parser.add_argument("--file-size", type=float, default=4.0, metavar="GB", help="largest file (default: 4)")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.file_size < float("inf"):  # neither is NaN
        parser.error(f"--file-size {arguments.file_size}: a number of GB above 0")

    import torch

    from distmoe.checkpoint.safetensors_set import write_set
    from distmoe.errors import DistmoeError

    began = time.perf_counter()
    print(f"checking {arguments.checkpoint}", flush=True)
    try:
        done = write_set(
            arguments.checkpoint,
            arguments.out,
            moments=arguments.moments,
            dtype=getattr(torch, arguments.dtype),
            file_bytes=max(1, int(arguments.file_size * 1e9)),
            progress=lambda name, size: print(f"  {size:>14,d}  {name}", flush=True),
        )
    except DistmoeError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    size, seconds = sum(done.files.values()), time.perf_counter() - began
    print(f"wrote {done.folder}: {done.tensors} tensors, {size:,d} bytes in {len(done.files)} files, {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
