#!/usr/bin/env python3
"""Prints what a checkpoint holds, without loading a weight.

python tools/inspect_checkpoint.py runs/demo/checkpoints/step_300
python tools/inspect_checkpoint.py runs/demo/checkpoints/step_300 --json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distmoe.checkpoint.manifest import read_manifest
from distmoe.checkpoint.shares import parameter_shares_of, shares_text
from distmoe.errors import DistmoeError


def describe(folder: Path) -> dict[str, Any]:
    """Plain values of the manifest that people ask for.

    Raises:
        CheckpointError: If the folder is not a complete checkpoint.
    """
    manifest = read_manifest(folder)
    shares = parameter_shares_of(manifest.tensors)
    return {
        "step": manifest.step,
        "score": manifest.score,
        "tasks": [task["name"] for task in manifest.tasks],
        "task_groups": manifest.grouping["layers"],
        "topology": manifest.topology,
        "bytes": sum(record.size for record in manifest.files.values()),
        "parameters": asdict(shares)
        | {
            "total": shares.total,
            "frozen_of_total": shares.frozen_of_total,
            "frozen_of_backbone": shares.frozen_of_backbone,
            "trainable_to_backbone": shares.trainable_to_backbone,
        },
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print what a checkpoint holds.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args(argv)
    try:
        found = describe(arguments.checkpoint)
        manifest = read_manifest(arguments.checkpoint)
    except DistmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"step {found['step']}, score {found['score']}, {found['bytes']:,} bytes")
    print(f"tasks: {', '.join(found['tasks'])}")
    print(f"task groups of the routed layers: {found['task_groups']}")
    print(f"written by: {found['topology']}")
    print(f"parameters: {shares_text(parameter_shares_of(manifest.tensors))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
