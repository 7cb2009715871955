#!/usr/bin/env python3
"""Turns a checkpoint into a Hugging Face folder that loads without distmoe.

python tools/convert_to_hf.py runs/NAME/checkpoints/step_N OUT
python tools/convert_to_hf.py runs/NAME/checkpoints/step_N OUT --task sst2     # one task's sub-network

OUT then loads with AutoModelForSequenceClassification (a decoder: AutoModelForCausalLM).from_pretrained(OUT,
trust_remote_code=True); the sub-network of one task is a stock class of transformers wherever that computes the same.
See docs/export.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Export a distmoe checkpoint to Hugging Face format.")
    parser.add_argument("checkpoint", type=Path, help="folder runs/NAME/checkpoints/step_N")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder; default: the run's own")
    parser.add_argument("--task", help="write the sub-network of this task only")
    arguments = parser.parse_args(argv)

    from distmoe.errors import DistmoeError

    try:
        print(f"reading {arguments.checkpoint}", flush=True)
        lines, loaded = (_export_whole if arguments.task is None else _export_task)(arguments)
    except DistmoeError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    for path in sorted(arguments.out.iterdir()):
        print(f"  {path.stat().st_size:>12,d}  {path.name}")
    print("\n".join(lines))
    print(f"wrote {arguments.out}: {loaded}")
    return 0


def _export_whole(arguments: argparse.Namespace) -> tuple[list[str], str]:
    from distmoe.checkpoint.export_hf import export

    out = export(arguments.checkpoint, arguments.out, tokenizer=arguments.tokenizer)
    return [], f"{_auto_class(out)}.from_pretrained({str(out)!r}, trust_remote_code=True)"


def _auto_class(out: Path) -> str:
    """The one that an export with its own code names last."""
    return str(list(json.loads((out / "config.json").read_text(encoding="utf-8"))["auto_map"])[-1])


def _export_task(arguments: argparse.Namespace) -> tuple[list[str], str]:
    from distmoe.checkpoint.export_task import export_task

    done = export_task(arguments.checkpoint, arguments.out, arguments.task, tokenizer=arguments.tokenizer)
    network = done.network
    lines = ["parameters               whole model          kept       dropped"]
    rows = [*network.counts.items(), ("all", tuple(map(sum, zip(*network.counts.values(), strict=True))))]
    lines += [f"{part:20} {whole:>15,d} {kept:>13,d} {whole - kept:>13,d}" for part, (whole, kept) in rows]
    if network.is_stock:
        return lines, f"{done.architecture}.from_pretrained({str(done.folder)!r})"
    lines += ["not a stock class of transformers:", *(f"  {reason}" for reason in network.reasons)]
    how = f"{_auto_class(done.folder)}.from_pretrained({str(done.folder)!r}, trust_remote_code=True)"
    return lines, how


if __name__ == "__main__":
    sys.exit(main())
