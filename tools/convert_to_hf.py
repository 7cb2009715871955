#!/usr/bin/env python3
"""Turns a checkpoint into a Hugging Face folder that loads without distmoe.

python tools/convert_to_hf.py runs/NAME/checkpoints/step_N OUT

OUT then loads with AutoModelForSequenceClassification.from_pretrained(OUT, trust_remote_code=True); docs/export.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Export a distmoe checkpoint to Hugging Face format.")
    parser.add_argument("checkpoint", type=Path, help="folder runs/NAME/checkpoints/step_N")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder; default: the run's own")
    arguments = parser.parse_args(argv)

    from distmoe.checkpoint.export_hf import export
    from distmoe.errors import DistmoeError

    try:
        print(f"reading {arguments.checkpoint}", flush=True)
        out = export(arguments.checkpoint, arguments.out, tokenizer=arguments.tokenizer)
    except DistmoeError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    for path in sorted(out.iterdir()):
        print(f"  {path.stat().st_size:>12,d}  {path.name}")
    print(f"wrote {out}: AutoModelForSequenceClassification.from_pretrained({str(out)!r}, trust_remote_code=True)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
