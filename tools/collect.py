#!/usr/bin/env python3
"""The results of a sweep as a table: ``python tools/collect.py runs sweep`` reads ``runs/sweep*/result.json``.

Runs that were moved aside (``NAME.old-DATE-TIME``) do not count.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

_MOVED_ASIDE = re.compile(r"\.old-\d{8}-\d{6}(-\d+)?$")  # see distmoe/training/run_folder.py


def collect(parent: Path, prefix: str) -> list[str]:
    """One line per run in order of name, then mean and standard deviation of the best validation scores."""
    lines, scores = [f"{'run':24}{'step':>8}{'best':>10}{'test':>10}  ended"], []
    for file in sorted(parent.glob(f"{prefix}*/result.json")):
        if _MOVED_ASIDE.search(file.parent.name):
            continue
        result = json.loads(file.read_text(encoding="utf-8"))
        best, test = result["best"]["score"], (result.get("test") or {}).get("macro")
        lines.append(
            f"{file.parent.name:24}{result['step']:>8}{_number(best):>10}{_number(test):>10}  {result['ended']}"
        )
        if best is not None:
            scores.append(best)
    if scores:
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        lines.append(f"{len(scores)} runs: best {statistics.mean(scores):.4f} +- {spread:.4f}")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def main() -> int:
    parser = argparse.ArgumentParser(description="The results of several runs as a table.")
    parser.add_argument("folder", type=Path, help="folder of the runs (run.output_dir)")
    parser.add_argument("prefix", help="beginning of their names")
    arguments = parser.parse_args()
    lines = collect(arguments.folder, arguments.prefix)
    if len(lines) > 1:
        print("\n".join(lines))
        return 0
    print(
        "error: no run has ended\n"
        f"  got:      no {arguments.folder}/{arguments.prefix}*/result.json\n"
        "  expected: at least one\n"
        "  remedy:   name the runs' folder (run.output_dir) and the beginning of their names",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
