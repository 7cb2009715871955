#!/usr/bin/env python3
"""Says what a checkpoint holds: tasks, tree of task groups, experts, sizes, step, data position, integrity.

python tools/inspect_checkpoint.py runs/NAME/checkpoints/step_N
python tools/inspect_checkpoint.py runs/NAME/checkpoints/step_N --verify     # compares every byte with its checksum
python tools/inspect_checkpoint.py runs/NAME/checkpoints/step_N --json

Exit code 0: intact; 1: damaged; 2: not a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distmoe.checkpoint.inspection import Inspection


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Inspect a distmoe checkpoint.")
    parser.add_argument("checkpoint", type=Path, help="folder runs/NAME/checkpoints/step_N")
    parser.add_argument("--verify", action="store_true", help="compare the checksum of every file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)

    from distmoe.checkpoint.inspection import inspect
    from distmoe.errors import DistmoeError

    try:
        found = inspect(arguments.checkpoint, contents=arguments.verify)
    except DistmoeError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    print(json.dumps(found.to_json(), indent=1) if arguments.json else "\n".join(_lines(found)))
    return 0 if found.integrity.intact else 1


def _lines(found: Inspection) -> Iterator[str]:
    from distmoe.checkpoint.shares import shares_text
    from distmoe.training.grouping import tree_lines

    written = ", ".join(f"{key} {value}" for key, value in found.topology.items())
    yield f"{found.folder}: step {found.step}, format {found.format_version}"
    yield f"written by: {written or 'not recorded'}"
    yield f"optimizer: {', '.join(f'{key} {value}' for key, value in found.optimizer.items())}"
    yield f"validation macro score: {'not evaluated' if found.score is None else f'{found.score:.4f}'}"
    position = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in found.data.items())
    yield f"data position: {position or 'not recorded'}"
    yield ""
    width = max(len(spec.name) for spec in found.tasks)
    yield f"{'task':{width}}  type                  outputs  metric      drawn before window"
    for spec in found.tasks:
        drawn = found.drawn.get(spec.name, "-")
        yield f"{spec.name:{width}}  {spec.kind:20}  {spec.num_outputs:>7}  {spec.metric:10}  {drawn:>19}"
    yield ""
    yield "task groups"
    yield from (f"  {line}" for line in tree_lines(found.grouping, found.tasks, tuple(found.routed_layers)))
    if found.routed_layers:
        yield ""
        yield "layer  task group  experts  width  parameters  tasks"
    for layer, pools in found.routed_layers.items():
        for pool in pools:
            names = ", ".join(pool.tasks)
            yield (
                f"{layer:>5}  {'g' + str(pool.task_group):>10}  {pool.experts:>7}  {pool.width:>5}  "
                f"{pool.parameters:>10,d}  {names}"
            )
    yield ""
    parts = ", ".join(f"{part} {count:,d}" for part, count in found.parameters.items() if count)
    yield f"parameters: {sum(found.parameters.values()):,d} ({parts})"
    yield f"shares: {shares_text(found.shares)}"
    yield f"types in the files: {', '.join(f'{dtype} x {count}' for dtype, count in found.dtypes.items())}"
    yield f"size: {found.total_bytes:,d} bytes in {len(found.bytes_by_file)} files"
    for name, size in found.bytes_by_file.items():
        yield f"  {size:>14,d}  {name}"
    yield from _integrity_lines(found)


def _integrity_lines(found: Inspection) -> Iterator[str]:
    checked = found.integrity
    how = "checksums and chunks" if checked.contents else "sizes and chunks; --verify compares checksums too"
    state = "intact" if checked.intact else f"DAMAGED, {len(checked.problems)} problem(s)"
    yield f"integrity: {state} ({checked.files} files, {checked.chunks} chunks; {how})"
    for problem in checked.problems[:20]:
        yield f"  {problem}"
    if len(checked.problems) > 20:
        yield f"  and {len(checked.problems) - 20} more"


if __name__ == "__main__":
    sys.exit(main())
